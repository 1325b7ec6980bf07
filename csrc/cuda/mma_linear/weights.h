// Weights as the mma kernels read them: in the order of the registers of core/mma_fragments.h.
//
//   [tile of 16 outputs][slab of 64 inputs]
//     [product][lane][16 bytes]   the four registers of A
//     [lane][4 bytes]             metadata, where two of four inputs are kept
//
// A slab is 64 * sizeof(T) bytes of inputs: 2 (int8) or 4 (16-bit) products of 32 bytes each, half
// as many where only kept values are stored. Outputs and inputs beyond the matrix are zeros.
//
// A kept group of four has two values, in order. Where fewer than two are nonzero (by their bits:
// -0.0 is kept), the lowest free positions are taken, with zeros.
//
// Any other matrix is the sum of two that are two of four: the second, its rest, is stored only
// where it is not all zeros, as slabs in the same form, and found by a number for each (tile,
// slab): 4 * place + mask. Bit i of the mask says that 64 bytes of inputs from 64 i on have any; 0:
// none.
#pragma once

#include <cstdint>

#include "core/mma_fragments.h"

namespace sparse_runtime::mma {

constexpr int kTileOutputs = 16;
constexpr int kSlabInputs = 64;
constexpr int kProductBytes = 512;
constexpr int kMetadataBytes = 128;
constexpr int kRestMask = 3;

SPARSE_RUNTIME_BOTH constexpr int products(int value_bytes, bool sparse) {
  return value_bytes * (sparse ? 1 : 2);
}
SPARSE_RUNTIME_BOTH constexpr int slab_bytes(int value_bytes, bool sparse) {
  return products(value_bytes, sparse) * kProductBytes + (sparse ? kMetadataBytes : 0);
}
SPARSE_RUNTIME_BOTH constexpr int tiles(int outputs) {
  return (outputs + kTileOutputs - 1) / kTileOutputs;
}
SPARSE_RUNTIME_BOTH constexpr int slabs(int inputs) {
  return (inputs + kSlabInputs - 1) / kSlabInputs;
}

// A matrix [outputs][inputs] without padding; T is the unsigned integer of a value's size.
template <typename T>
struct Matrix {
  T* values;
  int outputs, inputs;
  SPARSE_RUNTIME_BOTH T at(int row, int column) const {
    return row < outputs && column < inputs
               ? values[static_cast<std::int64_t>(row) * inputs + column]
               : T(0);
  }
  SPARSE_RUNTIME_BOTH void set(int row, int column, T value) const {
    if (row < outputs && column < inputs) {
      values[static_cast<std::int64_t>(row) * inputs + column] = value;
    }
  }
};

SPARSE_RUNTIME_BOTH constexpr bool is_zero(std::uint8_t value) {
  return value == 0;
}
SPARSE_RUNTIME_BOTH constexpr bool is_zero(std::uint16_t value) {
  return (value & 0x7FFF) == 0;
}

// Which two of a group of four are kept: first | second << 2, first < second; -1: more are nonzero.
template <typename T>
SPARSE_RUNTIME_BOTH int kept_of_four(const Matrix<const T>& matrix, int row, int first_column) {
  int mask = 0, count = 0;
  for (int i = 0; i < 4; ++i) {
    if (is_zero(matrix.at(row, first_column + i))) continue;
    mask |= 1 << i;
    ++count;
  }
  if (count > 2) return -1;
  for (int minus = 1; minus >= 0; --minus) {  // -0.0 first, then whatever is free
    for (int i = 0; i < 4 && count < 2; ++i) {
      if (mask & 1 << i || (minus && matrix.at(row, first_column + i) == 0)) continue;
      mask |= 1 << i;
      ++count;
    }
  }
  int first = 0;
  while (!(mask & 1 << first)) ++first;
  int second = first + 1;
  while (!(mask & 1 << second)) ++second;
  return first | second << 2;
}

// What one lane of one slab holds. False: a group of four has more than two nonzeros.
template <typename T>
SPARSE_RUNTIME_BOTH bool pack_lane(const Matrix<const T>& matrix, bool sparse, int tile, int slab,
                                   int lane, unsigned char* to) {
  constexpr int bytes = sizeof(T);
  const int row0 = tile * kTileOutputs, column0 = slab * kSlabInputs;
  const int count = products(bytes, sparse);
  bool fits = true;
  for (int product = 0; product < count; ++product) {
    for (int r = 0; r < 4; ++r) {
      const int row = row0 + a_row(lane, r);
      for (int i = 0; i < 4 / bytes; ++i) {
        const int place = (product * 32 + a_byte(lane, r)) / bytes + i;
        int column = column0 + place;
        if (sparse) {
          const int group = column0 + place / 2 * 4;
          const int kept = kept_of_four(matrix, row, group);
          fits = fits && kept >= 0;
          column = group + (kept >> (2 * (place % 2)) & 3);
        }
        reinterpret_cast<T*>(to + product * kProductBytes + lane * 16 + r * 4)[i] =
            matrix.at(row, column);
      }
    }
  }
  if (sparse) {
    std::uint32_t word = 0;
    for (int nibble = 0; nibble < 8; ++nibble) {
      const int row = row0 + meta_row(lane, nibble, bytes);
      const int kept = kept_of_four(matrix, row, column0 + 4 * meta_group(lane, nibble, bytes));
      fits = fits && kept >= 0;
      word |= static_cast<std::uint32_t>(kept & 15) << (4 * nibble);
    }
    *reinterpret_cast<std::uint32_t*>(to + count * kProductBytes + lane * 4) = word;
  }
  return fits;
}

// The inverse: writes the values that one lane holds to `matrix`, which was zeros.
template <typename T>
SPARSE_RUNTIME_BOTH void unpack_lane(const unsigned char* from, bool sparse, int tile, int slab,
                                     int lane, const Matrix<T>& matrix) {
  constexpr int bytes = sizeof(T);
  const int row0 = tile * kTileOutputs, column0 = slab * kSlabInputs;
  const int count = products(bytes, sparse);
  for (int product = 0; product < count; ++product) {
    for (int r = 0; r < 4; ++r) {
      for (int i = 0; i < 4 / bytes; ++i) {
        const int place = (product * 32 + a_byte(lane, r)) / bytes + i;
        const int row = a_row(lane, r);
        int column = place;
        if (sparse) {
          // The word that describes this row and group may be another lane's.
          const int group = place / 2;
          for (int other = 0; other < 32; ++other) {
            for (int nibble = 0; nibble < 8; ++nibble) {
              if (meta_row(other, nibble, bytes) != row) continue;
              if (meta_group(other, nibble, bytes) != group) continue;
              const auto word =
                  *reinterpret_cast<const std::uint32_t*>(from + count * kProductBytes + other * 4);
              column = 4 * group + (word >> (4 * nibble + 2 * (place % 2)) & 3);
            }
          }
        }
        const T value =
            reinterpret_cast<const T*>(from + product * kProductBytes + lane * 16 + r * 4)[i];
        if (value != 0) matrix.set(row0 + row, column0 + column, value);
      }
    }
  }
}

}  // namespace sparse_runtime::mma
