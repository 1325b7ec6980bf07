// From sums to results: bias, requantization, activation, residual, and rows quantized for the next
// layer: by a static scale here, by their own range in quantize_rows.h. The order of operations is
// that of kernels/linear/epilogue_triton.py and kernels/quantize/target_triton.py, which say why.
#pragma once

#include "cuda/mma_linear/quantize.h"

namespace sparse_runtime::mma {

SPARSE_RUNTIME_DEVICE float sigmoid(float x) {
  return ptx::divide(1.0F, ptx::add(1.0F, ptx::exp(-x)));
}

SPARSE_RUNTIME_DEVICE float activate(float x, int activation) {
  switch (activation) {
    case SR_GELU:
      return ptx::multiply(ptx::multiply(0.5F, x),
                           ptx::add(1.0F, ptx::erf(ptx::multiply(x, 0.7071067811865476F))));
    case SR_GELU_NEW: {
      const float cube = ptx::multiply(ptx::multiply(ptx::multiply(0.044715F, x), x), x);
      return ptx::multiply(x, sigmoid(ptx::multiply(1.5957691216057308F, ptx::add(x, cube))));
    }
    case SR_RELU:
      return x < 0.0F ? 0.0F : x;  // NaN stays
    case SR_SILU:
      return ptx::multiply(x, sigmoid(x));
    case SR_TANH:
      return ptx::add(ptx::multiply(2.0F, sigmoid(ptx::multiply(2.0F, x))), -1.0F);
    default:
      return x;
  }
}

SPARSE_RUNTIME_DEVICE float half_of(std::uint32_t bits, int type) {
  const auto half = static_cast<std::uint16_t>(bits);
  return type == SR_BF16 ? ptx::to_float(ptx::BF16{half}) : ptx::to_float(ptx::F16{half});
}

// A float in two steps: a load that nothing waits for yet, and what it brought.
SPARSE_RUNTIME_DEVICE std::uint32_t load_bits(const void* p, std::int64_t at, int type) {
  if (type == SR_F32) return ptx::bits_of(ptx::load(static_cast<const float*>(p) + at));
  return ptx::load(static_cast<const std::uint16_t*>(p) + at);
}
SPARSE_RUNTIME_DEVICE float float_of_bits(std::uint32_t bits, int type) {
  return type == SR_F32 ? ptx::float_of(bits) : half_of(bits, type);
}

// Stores x rounded to `type`; returns what a reader sees.
SPARSE_RUNTIME_DEVICE float store_float(void* p, std::int64_t at, int type, float x) {
  if (type == SR_F32) {
    ptx::store(static_cast<float*>(p) + at, x);
    return x;
  }
  if (type == SR_BF16) {
    const auto rounded = ptx::from_float<ptx::BF16>(x);
    ptx::store(static_cast<ptx::BF16*>(p) + at, rounded);
    return ptx::to_float(rounded);
  }
  const auto rounded = ptx::from_float<ptx::F16>(x);
  ptx::store(static_cast<ptx::F16*>(p) + at, rounded);
  return ptx::to_float(rounded);
}

// What a lane needs of each of its outputs, for all tokens, and of a token, for all outputs.
struct OutputTerms {
  float weight_scale, bias;
  std::int32_t weight_sum;
};
struct TokenTerms {
  float scale;
  std::int32_t zero;
};

template <bool kIsInteger>
SPARSE_RUNTIME_DEVICE OutputTerms output_terms(const SrLinear& p, int output) {
  OutputTerms terms{1.0F, 0.0F, 0};
  if (output >= p.out_features) return terms;
  if (kIsInteger) terms.weight_scale = ptx::load(p.weight_scale + output);
  if (kIsInteger && p.x_zero) terms.weight_sum = ptx::load(p.weight_sum + output);
  if (p.bias) terms.bias = ptx::load(p.bias + output);
  return terms;
}
template <bool kIsInteger>
SPARSE_RUNTIME_DEVICE TokenTerms token_terms(const SrLinear& p, int token) {
  if (!kIsInteger) return {1.0F, 0};
  const int at = token * p.x_scale_stride;
  return {ptx::load(p.x_scale + at), p.x_zero ? ptx::load(p.x_zero + at) : 0};
}

SPARSE_RUNTIME_DEVICE float dequantize(std::int32_t acc, const TokenTerms& token,
                                       const OutputTerms& output) {
  acc -= token.zero * output.weight_sum;
  return ptx::multiply(ptx::multiply(static_cast<float>(acc), token.scale), output.weight_scale);
}
SPARSE_RUNTIME_DEVICE float dequantize(float acc, const TokenTerms&, const OutputTerms&) {
  return acc;
}

// All that needs nothing of other outputs or of the residual.
template <typename Sum>
SPARSE_RUNTIME_DEVICE float before_residual(const SrLinear& p, Sum acc, const TokenTerms& token,
                                            const OutputTerms& terms, int output) {
  float y = dequantize(acc, token, terms);
  if (p.bias) y = ptx::add(y, terms.bias);
  if (p.out_scale) {
    const float scale = ptx::load(p.out_scale + output);
    if (scale != 0.0F) {
      const int zero = ptx::load(p.out_zero + output);
      const int q = quantize_static(y, scale, zero, ptx::load(p.out_low + output),
                                    ptx::load(p.out_high + output));
      y = ptx::multiply(static_cast<float>(q - zero), scale);
    }
  }
  return activate(y, p.activation);
}

// Whether this block is the last of `arrivals` to come here; what they have stored is then visible.
SPARSE_RUNTIME_DEVICE bool is_last(std::int32_t* counter, int arrivals) {
  auto* const flag = reinterpret_cast<int*>(ptx::shared_memory());
  ptx::sync_threads();
  if (ptx::thread() == 0) {
    const int last = ptx::arrive(counter) == arrivals - 1;
    if (last) ptx::store(counter, 0);  // as it was found, for the next launch
    ptx::store_shared(flag, last);
  }
  ptx::sync_threads();
  const int last = ptx::load_shared(flag);
  ptx::sync_threads();
  return last != 0;
}

SPARSE_RUNTIME_DEVICE int largest_of_warp(int value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const int other = ptx::shuffle_xor(value, mask);
    value = value > other ? value : other;
  }
  return value;
}

// A warp makes and stores a token's part of the tile at a time, from its sums in shared memory: so
// the code of an activation is there once a lane's outputs, not once a sum.
template <typename Tile>
SPARSE_RUNTIME_DEVICE void store_tile(const SrLinear& p, const typename Tile::Sum* staged,
                                      int tile_out, int tile_tok) {
  constexpr int each = Tile::kOut / 32;
  const int lane = ptx::thread() % 32, warp = ptx::thread() / 32;
  const float static_scale = p.scheme == SR_STATIC ? ptx::load(p.scale) : 1.0F;
  const int static_zero = p.scheme == SR_STATIC && p.zero ? ptx::load(p.zero) : 0;
  OutputTerms terms[each];
#pragma unroll
  for (int i = 0; i < each; ++i) {
    terms[i] = output_terms<Tile::kIsInteger>(p, tile_out * Tile::kOut + lane + 32 * i);
  }
  for (int local = warp; local < Tile::kTok; local += Tile::kThreads / 32) {
    const int token = tile_tok * Tile::kTok + local;
    if (token >= p.tokens) break;
    const TokenTerms of_token = token_terms<Tile::kIsInteger>(p, token);
    int below = 0, above = 0;
    // Before the first store: the compiler moves no load beyond one.
    std::uint32_t added[each] = {};
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int output = tile_out * Tile::kOut + lane + 32 * i;
      if (!p.residual || output >= p.out_features) continue;
      added[i] = load_bits(p.residual, token * p.residual_stride + output, p.floats_type);
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int output = tile_out * Tile::kOut + lane + 32 * i;
      if (output >= p.out_features) continue;
      const auto acc = ptx::load_shared(staged + local * (Tile::kOut + 4) + lane + 32 * i);
      float y = before_residual(p, acc, of_token, terms[i], output);
      if (p.residual) y = ptx::add(y, float_of_bits(added[i], p.floats_type));
      if (p.floats) y = store_float(p.floats, token * p.floats_stride + output, p.floats_type, y);
      if (p.scheme == SR_STATIC) {
        const int q = quantize_static(y, static_scale, static_zero, p.low, p.high);
        ptx::store(p.q + token * p.q_stride + output, static_cast<std::int8_t>(q));
      }
      below = magnitude_below(y) > below ? magnitude_below(y) : below;
      above = magnitude_above(y) > above ? magnitude_above(y) : above;
    }
    if (p.scheme < SR_SYMMETRIC) continue;
    below = largest_of_warp(below);
    above = largest_of_warp(above);
    if (lane == 0) {
      ptx::raise(p.ranges + token, below);
      ptx::raise(p.ranges + p.tokens + token, above);
    }
  }
}

}  // namespace sparse_runtime::mma
