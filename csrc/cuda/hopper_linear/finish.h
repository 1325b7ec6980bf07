// From the sums of four neighbouring outputs of a token to results: what a thread of a wgmma kernel
// does. The arithmetic and its order are those of mma_linear/epilogue.h; operands of the four
// columns stay in registers, and memory is read and written four at a time.
#pragma once

#include "cuda/mma_linear/epilogue.h"

namespace sparse_runtime::hopper {

struct Layer {
  SrLinear linear;
  std::int32_t tiles_out;  // of the launch
  // All rows of results and operands begin at multiples of four elements.
  bool by_four;
};

// Of results that are quantized by a static scheme.
struct Scale {
  float scale;
  int zero;
  float inverse;  // 1 / scale; 0: divide
};

// Within these, neither an inverse nor what quotient() makes of it is subnormal where it counts.
constexpr float kLeastInverted = 8.673617379884035e-19F;  // 2^-60
constexpr float kMostInverted = 1.152921504606847e18F;    // 2^60

SPARSE_RUNTIME_DEVICE Scale make_scale(float scale, int zero) {
  const bool inverts = scale >= kLeastInverted && scale <= kMostInverted;
  return {scale, zero, inverts ? ptx::divide(1.0F, scale) : 0.0F};
}

// x / scale, as ptx::divide rounds it, wherever mma::quantize_static can tell: not below 2^-20,
// which become 0, and not beyond 2^23, which are clamped. Two corrections by the remainder, as the
// compiler's own division ends with: after the first the quotient is one of the two nearest, and
// the second rounds it correctly (Markstein, "Computation of elementary functions on the IBM RISC
// System/6000 processor", 1990), as `inverse` is rounded correctly and remainders are exact.
SPARSE_RUNTIME_DEVICE float quotient(float x, const Scale& by) {
  const float rough = ptx::multiply(x, by.inverse);
  float y = rough;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    y = ptx::fused(ptx::fused(-y, by.scale, x), by.inverse, y);
  }
  return ptx::absolute(rough) < 8388608.0F ? y : rough;  // a NaN stays one
}

// As mma::quantize_static ends, for results of a byte: there, numbers are clamped to 2^22 before
// the zero point is added, here to less in one step.
SPARSE_RUNTIME_DEVICE int quantize_scaled(float scaled, int zero, int low, int high) {
  return mma::clamped(ptx::nearest_integer(scaled), low - zero, high - zero) + zero;
}

// What belongs to the four outputs of a thread.
struct Columns {
  int output, count;     // the first, and how many exist
  float scale[4];        // 1 without one
  float bias[4];         // -0 without one, which changes no number
  std::int32_t less[4];  // weights' sums times -1
};

SPARSE_RUNTIME_DEVICE Columns load_columns(const SrLinear& p, int output) {
  Columns c;
  c.output = output;
  c.count = mma::clamped(p.out_features - output, 0, 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool exists = i < c.count;
    c.scale[i] = exists && p.weight_scale ? ptx::load(p.weight_scale + output + i) : 1.0F;
    c.bias[i] = exists && p.bias ? ptx::load(p.bias + output + i) : -0.0F;
    c.less[i] = exists && p.x_zero ? -ptx::load(p.weight_sum + output + i) : 0;
  }
  return c;
}

// What one token brings to all of its results.
struct alignas(8) Token {
  float scale;
  std::int32_t zero;
};

SPARSE_RUNTIME_DEVICE Token load_token(const SrLinear& p, int token) {
  Token of{1.0F, 0};
  if (token >= p.tokens) return of;
  const int at = token * p.x_scale_stride;
  if (p.x_scale) of.scale = ptx::load(p.x_scale + at);
  if (p.x_zero) of.zero = ptx::load(p.x_zero + at);
  return of;
}

SPARSE_RUNTIME_DEVICE void dequantize(const std::int32_t (&acc)[4], const Columns& c,
                                      const Token& of, float (&y)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto sum = static_cast<float>(acc[i] + of.zero * c.less[i]);
    y[i] = ptx::multiply(ptx::multiply(sum, of.scale), c.scale[i]);
  }
}
SPARSE_RUNTIME_DEVICE void dequantize(const float (&acc)[4], const Columns&, const Token&,
                                      float (&y)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = acc[i];
}

// Outputs that a checkpoint's observer quantized before the activation.
SPARSE_RUNTIME_DEVICE void requantize(const SrLinear& p, const Columns& c, float (&y)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int output = c.output + i;
    const float scale = i < c.count ? ptx::load(p.out_scale + output) : 0.0F;
    if (scale != 0.0F) {
      const int zero = ptx::load(p.out_zero + output);
      const int q = mma::quantize_static(y[i], scale, zero, ptx::load(p.out_low + output),
                                         ptx::load(p.out_high + output));
      y[i] = ptx::multiply(static_cast<float>(q - zero), scale);
    }
  }
}

// One choice for four values.
SPARSE_RUNTIME_DEVICE void activate(int activation, float (&y)[4]) {
#define SPARSE_RUNTIME_CASE(NAME)          \
  case NAME:                               \
    _Pragma("unroll") for (float& x : y) { \
      x = mma::activate(x, NAME);          \
    }                                      \
    break;
  switch (activation) {
    SPARSE_RUNTIME_CASE(SR_GELU)
    SPARSE_RUNTIME_CASE(SR_GELU_NEW)
    SPARSE_RUNTIME_CASE(SR_RELU)
    SPARSE_RUNTIME_CASE(SR_SILU)
    SPARSE_RUNTIME_CASE(SR_TANH)
    default:
      break;
  }
#undef SPARSE_RUNTIME_CASE
}

// Four words that memory gives and takes at once.
struct alignas(16) FourWords {
  std::uint32_t words[4];
};
// The same of 16-bit floats, two a word.
struct alignas(8) FourHalves {
  std::uint32_t pairs[2];
};
struct alignas(4) FourBytes {
  std::int8_t bytes[4];
};

// Both to nearest even; a NaN stays one.
SPARSE_RUNTIME_DEVICE std::uint32_t halves_of(float low, float high, int type) {
#ifdef __CUDA_ARCH__
  std::uint32_t pair;
  if (type == SR_BF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  if (type == SR_BF16) {
    return ptx::from_float<ptx::BF16>(low).bits |
           std::uint32_t{ptx::from_float<ptx::BF16>(high).bits} << 16;
  }
  return ptx::from_float<ptx::F16>(low).bits | std::uint32_t{ptx::from_float<ptx::F16>(high).bits}
                                                   << 16;
#endif
}

SPARSE_RUNTIME_DEVICE void spread(const FourHalves& four, int type, float (&y)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = mma::half_of(four.pairs[i / 2] >> 16 * (i % 2), type);
}

SPARSE_RUNTIME_DEVICE void load_four(const void* p, std::int64_t at, int type, float (&y)[4]) {
  if (type == SR_F32) {
    const auto* const from = reinterpret_cast<const FourWords*>(static_cast<const float*>(p) + at);
    const FourWords four = ptx::load(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = ptx::float_of(four.words[i]);
    return;
  }
  const auto* const from = static_cast<const std::uint16_t*>(p) + at;
  spread(ptx::load(reinterpret_cast<const FourHalves*>(from)), type, y);
}

// Stores y rounded to `type`, and leaves in y what a reader sees, if it is `read` again.
SPARSE_RUNTIME_DEVICE void store_four(void* p, std::int64_t at, int type, bool read,
                                      float (&y)[4]) {
  if (type == SR_F32) {
    FourWords four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.words[i] = ptx::bits_of(y[i]);
    ptx::store(reinterpret_cast<FourWords*>(static_cast<float*>(p) + at), four);
    return;
  }
  const FourHalves four{{halves_of(y[0], y[1], type), halves_of(y[2], y[3], type)}};
  ptx::store(reinterpret_cast<FourHalves*>(static_cast<std::uint16_t*>(p) + at), four);
  if (read) spread(four, type, y);
}

// Of four columns.
struct Residual {
  float values[4];
};

SPARSE_RUNTIME_DEVICE Residual load_residual(const Layer& layer, const Columns& c, int token) {
  const SrLinear& p = layer.linear;
  Residual of{};
  if (!p.residual || token >= p.tokens || c.count == 0) return of;
  const auto first = token * p.residual_stride + c.output;
  if (layer.by_four) {
    load_four(p.residual, first, p.floats_type, of.values);
    return of;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i >= c.count) break;
    const std::uint32_t bits = mma::load_bits(p.residual, first + i, p.floats_type);
    of.values[i] = mma::float_of_bits(bits, p.floats_type);
  }
  return of;
}

SPARSE_RUNTIME_DEVICE void store_floats(const SrLinear& p, bool by_four, const Columns& c,
                                        int token, float (&y)[4]) {
  const auto at = token * p.floats_stride + c.output;
  if (by_four) {
    store_four(p.floats, at, p.floats_type, p.scheme != SR_FLOATS, y);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < c.count) y[i] = mma::store_float(p.floats, at + i, p.floats_type, y[i]);
  }
}

SPARSE_RUNTIME_DEVICE void store_quantized(const SrLinear& p, bool by_four, const Columns& c,
                                           int token, const Scale& scale, const float (&y)[4]) {
  float scaled[4];
  if (scale.inverse != 0.0F) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scaled[i] = quotient(y[i], scale);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) scaled[i] = ptx::divide(y[i], scale.scale);
  }
  FourBytes four;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    four.bytes[i] = static_cast<std::int8_t>(quantize_scaled(scaled[i], scale.zero, p.low, p.high));
  }
  std::int8_t* const to = p.q + token * p.q_stride + c.output;
  if (by_four) {
    ptx::store(reinterpret_cast<FourBytes*>(to), four);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < c.count) ptx::store(to + i, four.bytes[i]);
  }
}

SPARSE_RUNTIME_DEVICE int larger(int a, int b) {
  return a > b ? a : b;
}

// Raises a token's range by the 64 outputs that 16 neighbouring lanes hold.
SPARSE_RUNTIME_DEVICE void raise_ranges(const SrLinear& p, const Columns& c, int token,
                                        const float (&y)[4]) {
  int below = 0, above = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float value = i < c.count ? y[i] : 0.0F;
    below = larger(below, mma::magnitude_below(value));
    above = larger(above, mma::magnitude_above(value));
  }
#pragma unroll
  for (int mask = 8; mask > 0; mask /= 2) {
    below = larger(below, ptx::shuffle_xor(below, mask));
    above = larger(above, ptx::shuffle_xor(above, mask));
  }
  if (ptx::thread() % 16 != 0 || token >= p.tokens) return;
  ptx::raise(p.ranges + token, below);
  ptx::raise(p.ranges + p.tokens + token, above);
}

template <typename Sum>
struct Four {
  Sum sums[4];
};

// One token's results from the sums of four outputs.
template <typename Sum>
SPARSE_RUNTIME_DEVICE void finish_four(const Layer& layer, const Columns& c, const Token& of,
                                       const Residual& residual, int token, const Scale& fixed,
                                       const Four<Sum>& four) {
  const SrLinear& p = layer.linear;
  float y[4] = {};
  const bool exists = token < p.tokens && c.count > 0;
  if (exists) {
    dequantize(four.sums, c, of, y);
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = ptx::add(y[i], c.bias[i]);
    if (p.out_scale) requantize(p, c, y);
    activate(p.activation, y);
    if (p.residual) {
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i] = ptx::add(y[i], residual.values[i]);
    }
    if (p.floats) store_floats(p, layer.by_four, c, token, y);
    if (p.scheme == SR_STATIC) store_quantized(p, layer.by_four, c, token, fixed, y);
  }
  if (p.scheme >= SR_SYMMETRIC) raise_ranges(p, c, token, y);  // by whole warps
}

}  // namespace sparse_runtime::hopper
