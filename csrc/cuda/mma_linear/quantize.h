// The arithmetic of quantizing rows, bit for bit that of kernels/linear/reference.py: every
// operation rounds by itself (ptx::multiply, add, divide), none is fused with another.
#pragma once

#include "cuda/api/sparse_runtime_cuda.h"
#include "cuda/ptx/ptx.h"

namespace sparse_runtime::mma {

constexpr float kTiny = 1.1754943508222875e-38F;  // the smallest normal float
constexpr std::uint32_t kInfinityBits = 0x7F800000, kNanBits = 0x7FC00000;

SPARSE_RUNTIME_DEVICE float smaller(float a, float b) {
  return b < a ? b : a;
}
SPARSE_RUNTIME_DEVICE float larger(float a, float b) {
  return a < b ? b : a;
}
SPARSE_RUNTIME_DEVICE int clamped(int x, int low, int high) {
  return x < low ? low : x > high ? high : x;
}

// clamp(round_half_even(x / scale) + zero, low, high); NaN becomes zero.
SPARSE_RUNTIME_DEVICE int quantize_static(float x, float scale, int zero, int low, int high) {
  float scaled = ptx::divide(x, scale);
  if (!(scaled == scaled)) scaled = 0.0F;
  scaled = larger(smaller(ptx::round_half_even(scaled), 4194304.0F), -4194304.0F);
  return clamped(static_cast<int>(scaled) + zero, low, high);
}

// How far x lies below and above 0, as bits of a float, which order as integers; NaN is the
// largest.
SPARSE_RUNTIME_DEVICE int magnitude_below(float x) {
  return static_cast<int>(!(x == x) ? kNanBits : x < 0.0F ? ptx::bits_of(-x) : 0U);
}
SPARSE_RUNTIME_DEVICE int magnitude_above(float x) {
  return static_cast<int>(!(x == x) ? kNanBits : x > 0.0F ? ptx::bits_of(x) : 0U);
}

struct RowScale {
  float scale;
  float factor;  // rows are multiplied by it; SR_FULL_RANGE: divided
  int zero;      // as stored
};

SPARSE_RUNTIME_DEVICE RowScale scale_of(int below_bits, int above_bits, int scheme) {
  const auto top = static_cast<int>(kInfinityBits);
  if (scheme == SR_ASYMMETRIC) {
    if (below_bits >= top || above_bits >= top) return {ptx::float_of(kNanBits), 0.0F, -128};
    const float below = ptx::float_of(below_bits), above = ptx::float_of(above_bits);
    float scale = ptx::add(ptx::divide(above, 255.0F), ptx::divide(below, 255.0F));
    scale = below_bits == 0 && above_bits == 0 ? 1.0F : larger(scale, kTiny);
    const float factor = ptx::divide(1.0F, scale);
    const float zero = ptx::round_half_even(ptx::multiply(below, factor));
    return {scale, factor, static_cast<int>(larger(smaller(zero, 255.0F), 0.0F)) - 128};
  }
  const int bits = below_bits > above_bits ? below_bits : above_bits;
  if (bits == 0) return {1.0F, 1.0F, 0};
  const float largest = ptx::float_of(bits);
  if (scheme == SR_SYMMETRIC) {
    // In this order a NaN stays one.
    const float clamped_up = largest < 127.0F * kTiny ? 127.0F * kTiny : largest;
    return {ptx::divide(clamped_up, 127.0F), ptx::divide(127.0F, clamped_up), 0};
  }
  float scale = ptx::divide(largest, 127.5F);
  if (scale < kTiny) scale = kTiny;
  return {scale, scale, 0};
}

SPARSE_RUNTIME_DEVICE std::int8_t quantize_dynamic(float x, const RowScale& row, int scheme) {
  float scaled =
      scheme == SR_FULL_RANGE ? ptx::divide(x, row.factor) : ptx::multiply(x, row.factor);
  if (!(scaled == scaled)) scaled = 0.0F;
  scaled = larger(smaller(ptx::round_half_even(scaled), 4194304.0F), -4194304.0F);
  const int low = scheme == SR_SYMMETRIC ? -127 : -128;
  return static_cast<std::int8_t>(clamped(static_cast<int>(scaled) + row.zero, low, 127));
}

}  // namespace sparse_runtime::mma
