// From sums in registers to results, as a CUTLASS collective epilogue: the arithmetic and its order
// are those of mma_linear/epilogue.h.
//
// A warpgroup finishes blocks of [64 outputs][32 tokens]. wgmma leaves a token's outputs spread
// over the lanes, so sums go through shared memory once; a thread then has four outputs side by
// side, of the same four columns for every token, and its column's scales, biases and weight sums
// stay in registers.
//
// Rows that are quantized by scales of their own need the whole row, which no tile has: ranges are
// raised here, and quantize_rows.cu follows.
#pragma once

#include "cuda/mma_linear/epilogue.h"
#include "cute/tensor.hpp"
#include "cutlass/arch/barrier.h"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/detail.hpp"
#include "cutlass/epilogue/dispatch_policy.hpp"

namespace sparse_runtime::hopper {

constexpr int kGroupThreads = 128;  // a warpgroup
constexpr int kBlockOut = 64, kBlockTok = 32;
constexpr int kStagedRow = kBlockOut + 4;  // words; shifts each token by four banks

struct Layer {
  SrLinear linear;
  std::int32_t tiles_out;  // of the launch
  // All rows of results and operands begin at multiples of four elements.
  bool by_four;
};

struct Staging {
  alignas(16) std::uint32_t words[kBlockTok * kStagedRow];
  std::int32_t flag;
};

// What belongs to the four outputs of a thread.
struct Columns {
  int output, count;  // the first, and how many exist
  float scale[4], bias[4];
  std::int32_t sum[4];
};

SPARSE_RUNTIME_DEVICE Columns load_columns(const SrLinear& p, int output) {
  Columns c;
  c.output = output;
  c.count = mma::clamped(p.out_features - output, 0, 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool exists = i < c.count;
    c.scale[i] = exists && p.weight_scale ? p.weight_scale[output + i] : 1.0F;
    c.bias[i] = exists && p.bias ? p.bias[output + i] : 0.0F;
    c.sum[i] = exists && p.x_zero ? p.weight_sum[output + i] : 0;
  }
  return c;
}

SPARSE_RUNTIME_DEVICE void dequantize(const SrLinear& p, const std::int32_t (&acc)[4],
                                      const Columns& c, int token, float (&y)[4]) {
  const int at = token * p.x_scale_stride;
  const float scale = p.x_scale[at];
  const std::int32_t zero = p.x_zero ? p.x_zero[at] : 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto sum = static_cast<float>(acc[i] - zero * c.sum[i]);
    y[i] = ptx::multiply(ptx::multiply(sum, scale), c.scale[i]);
  }
}
SPARSE_RUNTIME_DEVICE void dequantize(const SrLinear&, const float (&acc)[4], const Columns&, int,
                                      float (&y)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = acc[i];
}

// Outputs that a checkpoint's observer quantized before the activation.
SPARSE_RUNTIME_DEVICE void requantize(const SrLinear& p, const Columns& c, float (&y)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int output = c.output + i;
    const float scale = i < c.count ? p.out_scale[output] : 0.0F;
    if (scale != 0.0F) {
      const int zero = p.out_zero[output];
      const int q = mma::quantize_static(y[i], scale, zero, p.out_low[output], p.out_high[output]);
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

SPARSE_RUNTIME_DEVICE float low_half(std::uint32_t pair, int type) {
  return type == SR_BF16 ? ptx::float_of(pair << 16)
                         : ptx::to_float(ptx::F16{static_cast<std::uint16_t>(pair)});
}
SPARSE_RUNTIME_DEVICE float high_half(std::uint32_t pair, int type) {
  return type == SR_BF16 ? ptx::float_of(pair & 0xFFFF0000U)
                         : ptx::to_float(ptx::F16{static_cast<std::uint16_t>(pair >> 16)});
}
// Nearest even, as ptx::from_float rounds.
SPARSE_RUNTIME_DEVICE std::uint32_t halves(float low, float high, int type) {
  std::uint32_t pair;
  if (type == SR_BF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

SPARSE_RUNTIME_DEVICE void load_four(const void* p, std::int64_t at, int type, float (&y)[4]) {
  if (type == SR_F32) {
    const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(p) + at);
    y[0] = four.x, y[1] = four.y, y[2] = four.z, y[3] = four.w;
    return;
  }
  const uint2 four = *reinterpret_cast<const uint2*>(static_cast<const std::uint16_t*>(p) + at);
  y[0] = low_half(four.x, type), y[1] = high_half(four.x, type);
  y[2] = low_half(four.y, type), y[3] = high_half(four.y, type);
}

// Stores y rounded to `type`, and leaves in y what a reader sees.
SPARSE_RUNTIME_DEVICE void store_four(void* p, std::int64_t at, int type, float (&y)[4]) {
  if (type == SR_F32) {
    *reinterpret_cast<float4*>(static_cast<float*>(p) + at) = {y[0], y[1], y[2], y[3]};
    return;
  }
  const uint2 four = {halves(y[0], y[1], type), halves(y[2], y[3], type)};
  *reinterpret_cast<uint2*>(static_cast<std::uint16_t*>(p) + at) = four;
  y[0] = low_half(four.x, type), y[1] = high_half(four.x, type);
  y[2] = low_half(four.y, type), y[3] = high_half(four.y, type);
}

SPARSE_RUNTIME_DEVICE void add_residual(const SrLinear& p, bool by_four, const Columns& c,
                                        int token, float (&y)[4]) {
  const auto at = token * p.residual_stride + c.output;
  float residual[4] = {};
  if (by_four) {
    load_four(p.residual, at, p.floats_type, residual);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < c.count) residual[i] = mma::load_float(p.residual, at + i, p.floats_type);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = ptx::add(y[i], residual[i]);
}

SPARSE_RUNTIME_DEVICE void store_floats(const SrLinear& p, bool by_four, const Columns& c,
                                        int token, float (&y)[4]) {
  const auto at = token * p.floats_stride + c.output;
  if (by_four) {
    store_four(p.floats, at, p.floats_type, y);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < c.count) y[i] = mma::store_float(p.floats, at + i, p.floats_type, y[i]);
  }
}

SPARSE_RUNTIME_DEVICE void store_quantized(std::int8_t* to, bool by_four, int count,
                                           const std::int8_t (&q)[4]) {
  if (by_four) {
    *reinterpret_cast<char4*>(to) = {q[0], q[1], q[2], q[3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) to[i] = q[i];
  }
}

// Raises a token's range by the 64 outputs that 16 neighbouring lanes hold.
SPARSE_RUNTIME_DEVICE void raise_ranges(const SrLinear& p, const Columns& c, int token,
                                        const float (&y)[4]) {
  int below = 0, above = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float value = i < c.count ? y[i] : 0.0F;
    below = max(below, mma::magnitude_below(value));
    above = max(above, mma::magnitude_above(value));
  }
#pragma unroll
  for (int mask = 8; mask > 0; mask /= 2) {
    below = max(below, ptx::shuffle_xor(below, mask));
    above = max(above, ptx::shuffle_xor(above, mask));
  }
  if (ptx::thread() % 16 != 0 || token >= p.tokens) return;
  ptx::raise(p.ranges + token, below);
  ptx::raise(p.ranges + p.tokens + token, above);
}

template <typename Sum>
struct Four {
  Sum sums[4];
};

// Of a static scheme.
struct Scale {
  float scale;
  int zero;
};

// One token's results from the sums of four outputs.
template <typename Sum>
SPARSE_RUNTIME_DEVICE void finish_four(const Layer& layer, const Columns& c, int token, Scale fixed,
                                       const Four<Sum>& four) {
  const SrLinear& p = layer.linear;
  float y[4] = {};
  const bool exists = token < p.tokens && c.count > 0;
  if (exists) {
    dequantize(p, four.sums, c, token, y);
    if (p.bias) {
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i] = ptx::add(y[i], c.bias[i]);
    }
    if (p.out_scale) requantize(p, c, y);
    activate(p.activation, y);
    if (p.residual) add_residual(p, layer.by_four, c, token, y);
    if (p.floats) store_floats(p, layer.by_four, c, token, y);
    if (p.scheme == SR_STATIC) {
      std::int8_t q[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        q[i] = static_cast<std::int8_t>(
            mma::quantize_static(y[i], fixed.scale, fixed.zero, p.low, p.high));
      }
      store_quantized(p.q + token * p.q_stride + c.output, layer.by_four, c.count, q);
    }
  }
  if (p.scheme >= SR_SYMMETRIC) raise_ranges(p, c, token, y);  // by whole warps
}

// The barrier of this warpgroup; the block's groups use different ones.
SPARSE_RUNTIME_DEVICE void sync_group() {
  cutlass::arch::NamedBarrier::sync(kGroupThreads, ptx::thread() / kGroupThreads);
}

// What a thread finishes of a tile: its four columns of every block of outputs, and every eighth
// token.
constexpr int kTokensAtOnce = kGroupThreads / 16;
struct Part {
  int out0, tok0, tile_tok, groups, group, thread;

  // Of a block: 64 outputs, counted from the tile's first.
  SPARSE_RUNTIME_DEVICE int row(int block) const { return (block * groups + group) * kBlockOut; }
  SPARSE_RUNTIME_DEVICE int column() const { return thread % 16 * 4; }
  SPARSE_RUNTIME_DEVICE int output(int block) const { return out0 + row(block) + column(); }
  SPARSE_RUNTIME_DEVICE int token() const { return thread / 16; }
  // Where four sums of a split lie.
  SPARSE_RUNTIME_DEVICE int place(int block, int token) const {
    return (row(block) / kBlockOut * tile_tok + token) * 16 + thread % 16;
  }
};

// The CollectiveEpilogue of cutlass::gemm::kernel::GemmUniversal, through
// Sm90TmaWarpSpecializedAdapter.
template <typename Sum, typename TileShape, int kGroups>
class Epilogue {
 public:
  static constexpr int kTileOut = cute::size<0>(TileShape{}), kTileTok = cute::size<1>(TileShape{});
  static constexpr int kBlocksOut = kTileOut / kBlockOut / kGroups;
  static constexpr int kFours = kTileOut * kTileTok / 4;
  static_assert(kBlocksOut * kBlockOut * kGroups == kTileOut && kTileTok % kBlockTok == 0);

  using DispatchPolicy = cutlass::epilogue::TmaWarpSpecialized;
  using ElementC = void;
  using ElementD = float;
  using StrideC = cute::Stride<cute::_1, std::int64_t, std::int64_t>;
  using StrideD = StrideC;

  // The operands' stages lie behind it; swizzles of 128 bytes repeat every 1024.
  struct alignas(1024) SharedStorage {
    Staging groups[kGroups];
  };
  using TensorStorage = SharedStorage;
  using Arguments = Layer;
  using Params = Layer;

  template <class ProblemShape>
  static constexpr Params to_underlying_arguments(const ProblemShape&, const Arguments& layer,
                                                  void*) {
    return layer;
  }
  template <class ProblemShape>
  static std::size_t get_workspace_size(const ProblemShape&, const Arguments&) {
    return 0;
  }

  CUTLASS_HOST_DEVICE explicit Epilogue(const Params& layer) : layer_(layer) {}

  template <class Problem, class Tile, class TileCoord, class Engine, class Layout, class TiledMma,
            class Residue>
  CUTLASS_DEVICE void operator()(Problem, Tile, TileCoord coord,
                                 const cute::Tensor<Engine, Layout>& sums, TiledMma mma, Residue,
                                 int thread, char* shared) {
    static_assert(decltype(cute::size<1>(sums))::value == kBlocksOut);
    static_assert(decltype(cute::size<2>(sums))::value == 1, "one wgmma spans the tile's tokens");
    const SrLinear& p = layer_.linear;
    const int out0 = cute::get<0>(coord) * kTileOut, tok0 = cute::get<1>(coord) * kTileTok;
    // Grids are rounded up to whole clusters.
    if (out0 >= p.out_features || tok0 >= p.tokens) return;
    const Part part{out0, tok0, kTileTok, kGroups, thread / kGroupThreads, thread % kGroupThreads};
    Staging& staging = reinterpret_cast<SharedStorage*>(shared)->groups[part.group];
    const auto places = mma.get_thread_slice(thread).partition_C(
        cute::make_identity_tensor(cute::take<0, 2>(TileShape{})));
    const int tile = cute::get<0>(coord) + cute::get<1>(coord) * layer_.tiles_out;
    uint4* const parts = static_cast<uint4*>(p.partials) + std::int64_t{tile} * p.split_k * kFours;
    const int split = cute::get<3>(coord);
    const bool alone = p.split_k == 1;
    const Scale scale = static_scale();
#pragma unroll 1
    for (int block = 0; block < kBlocksOut; ++block) {
      const Columns columns = load_columns(p, part.output(block));
#pragma unroll 1
      for (int slice = 0; slice < kTileTok / kBlockTok; ++slice) {
        if (tok0 + slice * kBlockTok >= p.tokens) break;
        sync_group();  // what was staged before has been read

        // Registers have no index at run time, hence a branch for each slice.
#pragma unroll
        for (int m = 0; m < kBlocksOut; ++m) {
#pragma unroll
          for (int s = 0; s < kTileTok / kBlockTok; ++s) {
            if (m == block && s == slice) stage(sums, places, m, s, part.row(m), staging);
          }
        }
        sync_group();
#pragma unroll 1
        for (int i = part.token(); i < kBlockTok; i += kTokensAtOnce) {
          const auto four =
              *reinterpret_cast<const uint4*>(staging.words + i * kStagedRow + part.column());
          const int token = slice * kBlockTok + i;
          if (alone) {
            finish_four(layer_, columns, tok0 + token, scale, sums_of(four));
          } else {
            parts[split * kFours + part.place(block, token)] = four;
          }
        }
      }
    }
    if (!alone && is_last(p.tile_counters + tile * kGroups + part.group, p.split_k, staging)) {
      finish_splits(parts, part, scale);
    }
  }

 private:
  CUTLASS_DEVICE static Sum as_sum(std::uint32_t word) {
    if constexpr (std::is_same_v<Sum, float>) {
      return __uint_as_float(word);
    } else {
      return static_cast<Sum>(word);
    }
  }
  CUTLASS_DEVICE static std::uint32_t as_word(float x) { return __float_as_uint(x); }
  CUTLASS_DEVICE static std::uint32_t as_word(std::int32_t x) {
    return static_cast<std::uint32_t>(x);
  }

  CUTLASS_DEVICE static Four<Sum> sums_of(const uint4& words) {
    return {as_sum(words.x), as_sum(words.y), as_sum(words.z), as_sum(words.w)};
  }
  CUTLASS_DEVICE Scale static_scale() const {
    const SrLinear& p = layer_.linear;
    if (p.scheme != SR_STATIC) return {1.0F, 0};
    return {*p.scale, p.zero ? *p.zero : 0};
  }

  template <class Sums, class Places>
  CUTLASS_DEVICE static void stage(const Sums& acc, const Places& places, int m, int slice,
                                   int row0, Staging& staging) {
    constexpr int each = kBlockOut * kBlockTok / kGroupThreads;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const auto place = places(slice * each + i, m, 0);
      const int token = cute::get<1>(place) - slice * kBlockTok;
      staging.words[token * kStagedRow + cute::get<0>(place) - row0] =
          as_word(acc(slice * each + i, m, 0));
    }
  }

  // Adds the sums of all splits in their order.
  CUTLASS_DEVICE void finish_splits(const uint4* parts, const Part& part, Scale scale) const {
    const SrLinear& p = layer_.linear;
#pragma unroll 1
    for (int block = 0; block < kBlocksOut; ++block) {
      const Columns columns = load_columns(p, part.output(block));
#pragma unroll 1
      for (int i = part.token(); i < kTileTok; i += kTokensAtOnce) {
        // Whole warps stay or leave: their two tokens are neighbours.
        if (part.tok0 + i / 2 * 2 >= p.tokens) break;
        const uint4* const place = parts + part.place(block, i);
        Four<Sum> total = sums_of(place[0]);
        for (int split = 1; split < p.split_k; ++split) {
          const Four<Sum> other = sums_of(place[split * kFours]);
#pragma unroll
          for (int j = 0; j < 4; ++j) total.sums[j] += other.sums[j];
        }
        finish_four(layer_, columns, part.tok0 + i, scale, total);
      }
    }
  }

  // Whether this warpgroup is the last of `arrivals`; what they have stored is then visible.
  CUTLASS_DEVICE static bool is_last(std::int32_t* counter, int arrivals, Staging& staging) {
    sync_group();
    if (ptx::thread() % kGroupThreads == 0) {
      staging.flag = ptx::arrive(counter) == arrivals - 1;
      if (staging.flag) *counter = 0;  // as it was found, for the next launch
    }
    sync_group();
    return staging.flag != 0;
  }

  Params layer_;
};

}  // namespace sparse_runtime::hopper
