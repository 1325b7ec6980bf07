// From sums in registers to results, as a CUTLASS collective epilogue: the arithmetic and its order
// are those of mma_linear/epilogue.h.
//
// A warpgroup finishes blocks of [64 outputs][32 tokens]. wgmma leaves a token's outputs spread
// over the lanes, so sums go through shared memory once; a thread then has four outputs side by
// side, of the same four columns for every token, and its column's scales, biases and weight sums
// stay in registers.
//
// Rows that are quantized by scales of their own need the whole row, which no tile has: ranges are
// raised here, and mma_linear/quantize_rows.h follows.
#pragma once

#include "cuda/hopper_linear/finish.h"
#include "cute/tensor.hpp"
#include "cutlass/arch/barrier.h"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/detail.hpp"
#include "cutlass/epilogue/dispatch_policy.hpp"

namespace sparse_runtime::hopper {

constexpr int kGroupThreads = 128;  // a warpgroup
constexpr int kBlockOut = 64, kBlockTok = 32;
constexpr int kStagedRow = kBlockOut + 4;  // words; shifts each token by four banks

struct Staging {
  alignas(16) std::uint32_t words[kBlockTok * kStagedRow];
  Token tokens[kBlockTok];
  std::int32_t flag;
};

// The barrier of this warpgroup; the block's groups use different ones.
SPARSE_RUNTIME_DEVICE void sync_group() {
  // CUTLASS 4.2's own does not tell the compiler that memory changes; 4.3's does.
  constexpr int taken = static_cast<int>(cutlass::arch::ReservedNamedBarriers::FirstUserBarrier);
  asm volatile("bar.sync %0, %1;" ::"r"(taken + ptx::thread() / kGroupThreads), "n"(kGroupThreads)
               : "memory");
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
      // Memory takes longer than two tokens' arithmetic: what they add is fetched ahead, and of the
      // next slice, what scales it.
      int ahead = tok0 + part.token();
      Residual next = load_residual(layer_, columns, ahead);
      Residual after = load_residual(layer_, columns, ahead += kTokensAtOnce);
      const bool brings_token = part.thread < kBlockTok;
      Token token_ahead = brings_token ? load_token(p, tok0 + part.thread) : Token{};
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
        if (brings_token) {
          staging.tokens[part.thread] = token_ahead;
          token_ahead = load_token(p, tok0 + (slice + 1) * kBlockTok + part.thread);
        }
        sync_group();
#pragma unroll 1
        for (int i = part.token(); i < kBlockTok; i += kTokensAtOnce) {
          const auto four =
              *reinterpret_cast<const uint4*>(staging.words + i * kStagedRow + part.column());
          const int token = slice * kBlockTok + i;
          if (alone) {
            Residual now;
            if (p.residual) {
              now = next;
              next = after;
              after = load_residual(layer_, columns, ahead += kTokensAtOnce);
            }
            finish_four(layer_, columns, staging.tokens[i], now, tok0 + token, scale,
                        sums_of(four));
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
    if (p.scheme != SR_STATIC) return {1.0F, 0, 1.0F};
    return make_scale(*p.scale, p.zero ? *p.zero : 0);
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

  // Adds the sums of all splits in their order, of several tokens at a time: one load takes as long
  // as all of them, and the compiler moves none beyond a store.
  CUTLASS_DEVICE void finish_splits(const uint4* parts, const Part& part, Scale scale) const {
    // As many as registers are free beside the code that holds a tile's sums.
    constexpr int together = kTileOut == 64 ? 4 : 2;
    const SrLinear& p = layer_.linear;
#pragma unroll 1
    for (int block = 0; block < kBlocksOut; ++block) {
      const Columns columns = load_columns(p, part.output(block));
#pragma unroll 1
      for (int first = 0; first < kTileTok; first += together * kTokensAtOnce) {
        if (part.tok0 + first >= p.tokens) break;
        Four<Sum> totals[together];
        Residual residuals[together];
        Token tokens[together];
#pragma unroll
        for (int i = 0; i < together; ++i) {
          const int token = part.tok0 + first + part.token() + i * kTokensAtOnce;
          residuals[i] = load_residual(layer_, columns, token);
          tokens[i] = load_token(p, token);
        }
#pragma unroll 1
        for (int split = 0; split < p.split_k; ++split) {
          const uint4* const place =
              parts + split * kFours + part.place(block, first + part.token());
#pragma unroll
          for (int i = 0; i < together; ++i) {
            const Four<Sum> one = sums_of(place[i * kTokensAtOnce * 16]);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              totals[i].sums[j] = split == 0 ? one.sums[j] : totals[i].sums[j] + one.sums[j];
            }
          }
        }
#pragma unroll
        for (int i = 0; i < together; ++i) {
          const int token = part.tok0 + first + part.token() + i * kTokensAtOnce;
          // Whole warps stay or leave: their two tokens are neighbours.
          if (token / 2 * 2 >= p.tokens) break;
          finish_four(layer_, columns, tokens[i], residuals[i], token, scale, totals[i]);
        }
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
