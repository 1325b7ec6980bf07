// Packing on the host into the order of layout.h; `packed` has packed_bytes. In a header, as the
// library can pack what kernels it does not have would read.
#pragma once

#include <cstring>

#include "cuda/hopper_linear/layout.h"
#include "cuda/mma_linear/weights.h"

namespace sparse_runtime::hopper {
using mma::Matrix;

template <typename T>
void pack_dense(const T* values, int outputs, int inputs, T* to) {
  const int padded = padded_inputs(inputs, sizeof(T));
  for (int output = 0; output < outputs; ++output) {
    std::memcpy(to + std::int64_t{output} * padded, values + std::int64_t{output} * inputs,
                inputs * sizeof(T));
  }
}

template <typename T>
void unpack_dense(const T* from, int outputs, int inputs, T* values) {
  const int padded = padded_inputs(inputs, sizeof(T));
  for (int output = 0; output < outputs; ++output) {
    std::memcpy(values + std::int64_t{output} * inputs, from + std::int64_t{output} * padded,
                inputs * sizeof(T));
  }
}

template <typename T>
bool pack_sparse(const Matrix<const T>& matrix, unsigned char* to) {
  const int padded = padded_inputs(matrix.inputs, sizeof(T));
  auto* kept_values = reinterpret_cast<T*>(to);
  unsigned char* const metadata = to + metadata_offset(matrix.outputs, matrix.inputs, sizeof(T));
  bool fits = true;
  for (int output = 0; output < matrix.outputs; ++output) {
    for (int group = 0; group < padded / 4; ++group) {
      const int kept = mma::kept_of_four(matrix, output, group * 4);
      if (kept < 0) {
        fits = false;
        continue;
      }
      T* const pair = kept_values + std::int64_t{output} * (padded / 2) + group * 2;
      pair[0] = matrix.at(output, group * 4 + (kept & 3));
      pair[1] = matrix.at(output, group * 4 + (kept >> 2 & 3));
      const auto nibble = metadata_nibble(output, group, matrix.outputs, sizeof(T));
      metadata[nibble / 2] |= kept << nibble % 2 * 4;
    }
  }
  return fits;
}

template <typename T>
void unpack_sparse(const unsigned char* from, const Matrix<T>& matrix) {
  const int padded = padded_inputs(matrix.inputs, sizeof(T));
  const auto* kept_values = reinterpret_cast<const T*>(from);
  const unsigned char* const metadata =
      from + metadata_offset(matrix.outputs, matrix.inputs, sizeof(T));
  for (int output = 0; output < matrix.outputs; ++output) {
    for (int group = 0; group < padded / 4; ++group) {
      const auto nibble = metadata_nibble(output, group, matrix.outputs, sizeof(T));
      const int kept = metadata[nibble / 2] >> nibble % 2 * 4;
      const T* const pair = kept_values + std::int64_t{output} * (padded / 2) + group * 2;
      matrix.set(output, group * 4 + (kept & 3), pair[0]);
      matrix.set(output, group * 4 + (kept >> 2 & 3), pair[1]);
    }
  }
}

template <typename T>
bool pack_as(bool sparse, const void* values, int outputs, int inputs, void* packed) {
  const auto* const from = static_cast<const T*>(values);
  if (sparse) {
    return pack_sparse<T>({from, outputs, inputs}, static_cast<unsigned char*>(packed));
  }
  pack_dense(from, outputs, inputs, static_cast<T*>(packed));
  return true;
}

template <typename T>
void unpack_as(bool sparse, const void* packed, int outputs, int inputs, void* values) {
  auto* const to = static_cast<T*>(values);
  if (sparse) {
    unpack_sparse<T>(static_cast<const unsigned char*>(packed), {to, outputs, inputs});
  } else {
    unpack_dense(static_cast<const T*>(packed), outputs, inputs, to);
  }
}

// values [outputs][inputs] of value_bytes each, contiguous. False: a group of four inputs has more
// than two values that are not 0.
inline bool pack(int value_bytes, bool sparse, const void* values, int outputs, int inputs,
                 void* packed) {
  std::memset(packed, 0, packed_bytes(outputs, inputs, value_bytes, sparse));
  return value_bytes == 1 ? pack_as<std::uint8_t>(sparse, values, outputs, inputs, packed)
                          : pack_as<std::uint16_t>(sparse, values, outputs, inputs, packed);
}

// The inverse.
inline void unpack(int value_bytes, bool sparse, const void* packed, int outputs, int inputs,
                   void* values) {
  std::memset(values, 0, std::size_t(outputs) * inputs * value_bytes);
  if (value_bytes == 1) {
    unpack_as<std::uint8_t>(sparse, packed, outputs, inputs, values);
  } else {
    unpack_as<std::uint16_t>(sparse, packed, outputs, inputs, values);
  }
}

}  // namespace sparse_runtime::hopper
