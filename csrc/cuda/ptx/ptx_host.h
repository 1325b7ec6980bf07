// ptx.h on the host. Tensor-core products are computed by the fragments of core/mma_fragments.h:
// integers exactly; floats as exact products summed in double, then rounded once to float.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "core/mma_fragments.h"
#include "cuda/emulate/emulate.h"
#include "cuda/ptx/half.h"

namespace sparse_runtime::ptx {

inline int thread() {
  return emulate::thread();
}
inline int block_x() {
  return emulate::block_x();
}
inline int block_y() {
  return emulate::block_y();
}
inline unsigned char* shared_memory() {
  return static_cast<unsigned char*>(emulate::shared());
}

template <typename T>
T load(const T* p) {
  emulate::check_global(p, sizeof(T), alignof(T), false);
  return *p;
}
template <typename T>
void store(T* p, T value) {
  emulate::check_global(p, sizeof(T), alignof(T), true);
  *p = value;
}
template <typename T>
T load_shared(const T* p) {
  emulate::check_shared(p, sizeof(T), alignof(T));
  return *p;
}
template <typename T>
void store_shared(T* p, T value) {
  emulate::check_shared(p, sizeof(T), alignof(T));
  *p = value;
}

inline void sync_threads() {
  emulate::sync_threads();
}
inline void sync_warp() {
  emulate::sync_warp("syncwarp", nullptr, [](void* const*) {});
}

inline void copy_async(void* shared, const void* global, int valid) {
  emulate::copy_async(shared, global, 16, valid);
}
inline void commit_copies() {
  emulate::commit_copies();
}
template <int GroupsInFlight>
void wait_copies() {
  emulate::wait_copies(GroupsInFlight);
}

inline void wait_for_previous_launch() {}

inline void load_matrices(std::uint32_t (&out)[4], const void* shared_row) {
  struct Lane {
    const void* row;
    std::uint32_t* out;
  } mine{shared_row, out};
  emulate::check_shared(shared_row, 16, 16);
  emulate::sync_warp("ldmatrix", &mine, [](void* const* lanes) {
    for (int lane = 0; lane < emulate::kWarp; ++lane) {
      for (int r = 0; r < 4; ++r) {
        const auto* from = static_cast<const Lane*>(lanes[8 * r + lane / 4]);
        const char* at = static_cast<const char*>(from->row) + 4 * (lane % 4);
        std::memcpy(static_cast<Lane*>(lanes[lane])->out + r, at, 4);
      }
    }
  });
}

inline int shuffle_xor(int value, int mask) {
  struct Lane {
    int value, mask, result;
  } mine{value, mask, 0};
  emulate::sync_warp("shfl", &mine, [](void* const* lanes) {
    for (int lane = 0; lane < emulate::kWarp; ++lane) {
      auto* to = static_cast<Lane*>(lanes[lane]);
      to->result = static_cast<const Lane*>(lanes[(lane ^ to->mask) % emulate::kWarp])->value;
    }
  });
  return mine.result;
}

inline int arrive(int* counter) {
  emulate::check_global(counter, 4, 4, true);
  return (*counter)++;
}
inline void raise(int* at, int value) {
  emulate::check_global(at, 4, 4, true);
  if (value > *at) *at = value;
}

inline float multiply(float a, float b) {
  return a * b;
}
inline float add(float a, float b) {
  return a + b;
}
inline float fused(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float divide(float a, float b) {
  return a / b;
}
inline float absolute(float x) {
  return std::fabs(x);
}
inline int nearest_integer(float x) {
  if (!(x == x)) return 0;
  if (x >= 2147483648.0F) return std::numeric_limits<int>::max();
  if (x < -2147483648.0F) return std::numeric_limits<int>::min();
  return static_cast<int>(std::nearbyint(x));
}
inline float round_half_even(float x) {
  return std::nearbyintf(x);
}
inline float erf(float x) {
  return std::erf(x);
}
inline float exp(float x) {
  return std::exp(x);
}

namespace host {

// One warp's product. T is the type of the values, Sum of the sums.
template <typename Sum>
struct Lane {
  Sum* d;
  const std::uint32_t* a;
  std::uint32_t b[4];
  std::uint32_t metadata;
};

template <typename T>
double value_of(const void* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  if constexpr (std::is_same_v<T, std::int8_t>) {
    return value;
  } else {
    return to_float(value);
  }
}

// A [16][k] with zeros put back, from 32 bytes a row and, where Sparse, the metadata.
template <typename T, bool Sparse, typename Sum, int Selector>
void read_a(double (&matrix)[16][64], void* const* lanes) {
  constexpr int kept = 32 / sizeof(T);
  double packed[16][kept];
  for (int lane = 0; lane < emulate::kWarp; ++lane) {
    const auto* from = static_cast<const Lane<Sum>*>(lanes[lane]);
    for (int r = 0; r < 4; ++r) {
      const char* bytes = reinterpret_cast<const char*>(from->a + r);
      for (unsigned i = 0; i < 4 / sizeof(T); ++i) {
        packed[mma::a_row(lane, r)][mma::a_byte(lane, r) / sizeof(T) + i] =
            value_of<T>(bytes + i * sizeof(T));
      }
    }
  }
  if constexpr (!Sparse) {
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < kept; ++k) matrix[row][k] = packed[row][k];
    }
    return;
  }
  for (int lane = 0; lane < emulate::kWarp; ++lane) {
    if (sizeof(T) == 2 && lane % 4 / 2 != Selector) continue;
    const auto* from = static_cast<const Lane<Sum>*>(lanes[lane]);
    for (int nibble = 0; nibble < 8; ++nibble) {
      const int row = mma::meta_row(lane, nibble, sizeof(T));
      const int groups = 2 * kept / 4;
      const int group = mma::meta_group(lane, nibble, sizeof(T)) % groups;
      const int first = from->metadata >> (4 * nibble) & 3;
      const int second = from->metadata >> (4 * nibble + 2) & 3;
      if (first >= second) throw std::runtime_error("mma.sp: metadata out of order");
      matrix[row][4 * group + first] = packed[row][2 * group];
      matrix[row][4 * group + second] = packed[row][2 * group + 1];
    }
  }
}

template <typename T, bool Sparse, typename Sum, int Selector>
void multiply_together(void* const* lanes) {
  constexpr int k = (Sparse ? 64 : 32) / sizeof(T);
  double a[16][64] = {}, b[64][8];
  read_a<T, Sparse, Sum, Selector>(a, lanes);
  for (int lane = 0; lane < emulate::kWarp; ++lane) {
    const auto* from = static_cast<const Lane<Sum>*>(lanes[lane]);
    for (int r = 0; r < (Sparse ? 4 : 2); ++r) {
      const char* bytes = reinterpret_cast<const char*>(from->b + r);
      for (unsigned i = 0; i < 4 / sizeof(T); ++i) {
        b[mma::b_byte(lane, r) / sizeof(T) + i][mma::b_column(lane)] =
            value_of<T>(bytes + i * sizeof(T));
      }
    }
  }
  for (int lane = 0; lane < emulate::kWarp; ++lane) {
    auto* to = static_cast<Lane<Sum>*>(lanes[lane]);
    for (int r = 0; r < 4; ++r) {
      double sum = static_cast<double>(to->d[r]);
      for (int i = 0; i < k; ++i) sum += a[mma::d_row(lane, r)][i] * b[i][mma::d_column(lane, r)];
      to->d[r] = static_cast<Sum>(sum);
    }
  }
}

}  // namespace host

inline void multiply_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                        std::uint32_t b1) {
  host::Lane<std::int32_t> mine{d, a, {b0, b1, 0, 0}, 0};
  emulate::sync_warp("mma s8", &mine, host::multiply_together<std::int8_t, false, std::int32_t, 0>);
}

inline void multiply_sparse_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                               const std::uint32_t (&b)[4], std::uint32_t metadata) {
  host::Lane<std::int32_t> mine{d, a, {b[0], b[1], b[2], b[3]}, metadata};
  emulate::sync_warp("mma.sp s8", &mine,
                     host::multiply_together<std::int8_t, true, std::int32_t, 0>);
}

template <typename T>
void multiply(T, float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  host::Lane<float> mine{d, a, {b0, b1, 0, 0}, 0};
  emulate::sync_warp("mma", &mine, host::multiply_together<T, false, float, 0>);
}

template <int Selector, typename T>
void multiply_sparse(T, float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[4],
                     std::uint32_t metadata) {
  host::Lane<float> mine{d, a, {b[0], b[1], b[2], b[3]}, metadata};
  emulate::sync_warp(Selector ? "mma.sp selector 1" : "mma.sp selector 0", &mine,
                     host::multiply_together<T, true, float, Selector>);
}

}  // namespace sparse_runtime::ptx
