// The bits of 16-bit floats as float and back, nearest even, on device and host alike.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/mma_fragments.h"

namespace sparse_runtime::ptx {

SPARSE_RUNTIME_BOTH inline std::uint32_t bits_of(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
#endif
}

SPARSE_RUNTIME_BOTH inline float float_of(std::uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
#endif
}

struct BF16 {
  std::uint16_t bits;
};

struct F16 {
  std::uint16_t bits;
};

SPARSE_RUNTIME_BOTH inline float to_float(float x) {
  return x;
}
SPARSE_RUNTIME_BOTH inline float to_float(BF16 x) {
  return float_of(std::uint32_t(x.bits) << 16);
}

SPARSE_RUNTIME_BOTH inline float to_float(F16 x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000) << 16;
  const std::uint32_t rest = std::uint32_t(x.bits & 0x7FFF) << 13;
  if ((x.bits & 0x7C00) == 0x7C00) return float_of(sign | 0x7F800000 | rest);  // infinity, NaN
  // 2**112 moves the exponent's bias from 15 to 127, and makes subnormals normal.
  const float magnitude = float_of(rest) * float_of(0x77800000);
  return float_of(sign | bits_of(magnitude));
#endif
}

template <typename T>
SPARSE_RUNTIME_BOTH T from_float(float x);

template <>
SPARSE_RUNTIME_BOTH inline float from_float<float>(float x) {
  return x;
}

template <>
SPARSE_RUNTIME_BOTH inline BF16 from_float<BF16>(float x) {
  const std::uint32_t bits = bits_of(x);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return {std::uint16_t((bits >> 16) | 0x40)};  // NaN
  return {std::uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}

template <>
SPARSE_RUNTIME_BOTH inline F16 from_float<F16>(float x) {
#ifdef __CUDA_ARCH__
  F16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const std::uint32_t bits = bits_of(x), magnitude = bits & 0x7FFFFFFF;
  const std::uint16_t sign = std::uint16_t(bits >> 16 & 0x8000);
  if (magnitude > 0x7F800000) return {std::uint16_t(sign | 0x7E00)};   // NaN
  if (magnitude >= 0x477FF000) return {std::uint16_t(sign | 0x7C00)};  // rounds to infinity
  if (magnitude < 0x38800000) {                                        // subnormal or zero
    // Adding 0.5 leaves the result's 10 bits, rounded, at the end of the sum's.
    const float sum = float_of(magnitude) + 0.5F;
    return {std::uint16_t(sign | (bits_of(sum) - 0x3F000000))};
  }
  const std::uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
  return {std::uint16_t(sign | ((rounded - 0x38000000) >> 13))};
#endif
}

}  // namespace sparse_runtime::ptx
