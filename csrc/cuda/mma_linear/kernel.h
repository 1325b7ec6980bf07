// A linear layer on mma.sync and mma.sp, for sm_80 and later: one template for dense weights, for
// two of four and for any sparse matrix as two of four and a rest, so that each is measured against
// its like.
//
// Weights are the A of the products, tokens their columns. A block makes [kOut outputs][kTok
// tokens], or with split-K the part that some slabs of 64 inputs give. Stages of both operands come
// by cp.async; A is stored in register order and read as whole words of 16 bytes, tokens through
// ldmatrix, swizzled.
#pragma once

#include <type_traits>
#include "cuda/mma_linear/epilogue.h"

#include "cuda/mma_linear/weights.h"
#include "cuda/ptx/ptx.h"

namespace sparse_runtime::mma {

// What a kernel's weights are: all inputs; two of every four; or two of every four and, for the
// tiles that need it, two more of every four: the rest of weights.h.
enum class Structure { kDense = SR_DENSE, kTwoOfFour = SR_TWO_OF_FOUR, kExact = SR_EXACT };

template <typename T_, Structure kStructure_, int kOut_, int kTok_, int kWarpsOut_, int kWarpsTok_,
          int kStages_>
struct Tile {
  using T = T_;
  static constexpr bool kIsInteger = sizeof(T) == 1;
  using Sum = std::conditional_t<kIsInteger, std::int32_t, float>;
  static constexpr Structure kStructure = kStructure_;
  static constexpr bool kSparse = kStructure != Structure::kDense;
  static constexpr bool kHasRest = kStructure == Structure::kExact;
  static constexpr int kOut = kOut_, kTok = kTok_;
  static constexpr int kWarpsOut = kWarpsOut_, kWarpsTok = kWarpsTok_, kStages = kStages_;
  static constexpr int kThreads = 32 * kWarpsOut * kWarpsTok;
  static constexpr int kM = kOut / 16 / kWarpsOut;  // tiles of 16 outputs a warp
  static constexpr int kN = kTok / 8 / kWarpsTok;   // columns of 8 tokens a warp
  static constexpr int kValueBytes = sizeof(T);
  static constexpr int kSlab = slab_bytes(kValueBytes, kSparse);
  static constexpr int kRow = kSlabInputs * kValueBytes;  // bytes of one token in a stage
  static constexpr int kWeightStage = kOut / 16 * kSlab;
  // A stage: weights, tokens, and of the rest every tile's slab and mask, each at its place.
  static constexpr int kRestAt = kWeightStage + kTok * kRow;
  static constexpr int kMasksAt = kRestAt + kWeightStage;
  static constexpr int kStage = kHasRest ? kMasksAt + 128 : kRestAt;
  static constexpr int kStaged = (kOut + 4) * kTok * 4;  // the sums, before they are stored
  static constexpr int kShared = kStages * kStage > kStaged ? kStages * kStage : kStaged;
  static_assert(kOut % (16 * kWarpsOut) == 0 && kOut % 32 == 0 && kTok % (8 * kWarpsTok) == 0 &&
                kStages >= 2);
};

// Where 16 bytes of a token lie in a stage: eight rows that ldmatrix reads at once meet eight
// banks.
template <int kRow>
SPARSE_RUNTIME_DEVICE int swizzled(int token, int chunk) {
  constexpr int chunks = kRow / 16;
  const int turned = chunks == 8 ? chunk ^ (token & 7) : chunk ^ (token >> 1 & 3);
  return token * kRow + turned * 16;
}

template <typename Tile>
SPARSE_RUNTIME_DEVICE void fetch(const SrLinear& p, int tile_out, int tile_tok, int slab,
                                 unsigned char* stage) {
  const int all = slabs(p.in_features), last = tiles(p.out_features) - 1;
  constexpr int words = Tile::kSlab / 16;
  for (int i = ptx::thread(); i < Tile::kOut / 16 * words; i += Tile::kThreads) {
    const int tile = tile_out * (Tile::kOut / 16) + i / words;
    // Outputs beyond the last are computed from it, and not stored.
    const auto at = (static_cast<std::int64_t>(tile < last ? tile : last) * all + slab) * words;
    ptx::copy_async(stage + i * 16,
                    static_cast<const unsigned char*>(p.weight) + (at + i % words) * 16, 16);
  }
  if constexpr (Tile::kHasRest) {
    for (int i = ptx::thread(); i < Tile::kOut / 16 * words; i += Tile::kThreads) {
      const int tile = tile_out * (Tile::kOut / 16) + i / words;
      const auto at = static_cast<std::int64_t>(tile < last ? tile : last) * all + slab;
      const int place = ptx::load(p.rest_places + at);
      if (i % words == 0) {
        ptx::store_shared(reinterpret_cast<int*>(stage + Tile::kMasksAt) + i / words,
                          place & kRestMask);
      }
      if ((place & kRestMask) == 0) continue;
      const auto from = static_cast<std::int64_t>(place / (kRestMask + 1)) * words + i % words;
      ptx::copy_async(stage + Tile::kRestAt + i * 16,
                      static_cast<const unsigned char*>(p.rest) + from * 16, 16);
    }
  }
  constexpr int chunks = Tile::kRow / 16;
  const int row_bytes = p.in_features * Tile::kValueBytes;
  // All eight of a thread's copies at once would take registers from the sums.
  constexpr int at_once = Tile::kTok * chunks > 4 * Tile::kThreads ? 2 : 4;
#pragma unroll at_once
  for (int i = ptx::thread(); i < Tile::kTok * chunks; i += Tile::kThreads) {
    const int token = i / chunks, chunk = i % chunks, row = tile_tok * Tile::kTok + token;
    const int first = slab * Tile::kRow + chunk * 16;
    const int left = row < p.tokens ? row_bytes - first : 0;
    const int valid = left < 0 ? 0 : left < 16 ? left : 16;
    const auto* x = static_cast<const unsigned char*>(p.x);
    const auto at = valid ? row * p.x_stride * Tile::kValueBytes + first : 0;
    ptx::copy_async(stage + Tile::kWeightStage + swizzled<Tile::kRow>(token, chunk), x + at, valid);
  }
}

struct alignas(16) Word {
  std::uint32_t r[4];
};

template <typename Tile>
SPARSE_RUNTIME_DEVICE void product(typename Tile::Sum (&acc)[4], const std::uint32_t (&a)[4],
                                   std::uint32_t b0, std::uint32_t b1) {
  if constexpr (Tile::kIsInteger) {
    ptx::multiply_s8(acc, a, b0, b1);
  } else {
    ptx::multiply(typename Tile::T{}, acc, a, b0, b1);
  }
}

template <typename Tile, int kPiece>
SPARSE_RUNTIME_DEVICE void sparse_product(typename Tile::Sum (&acc)[4], const std::uint32_t (&a)[4],
                                          const std::uint32_t (&b)[4], std::uint32_t metadata) {
  if constexpr (Tile::kIsInteger) {
    ptx::multiply_sparse_s8(acc, a, b, metadata);
  } else {
    ptx::multiply_sparse<kPiece>(typename Tile::T{}, acc, a, b, metadata);
  }
}

// The products of 16 outputs with all tokens of the warp, from a slab of two of four.
template <typename Tile, int kPiece>
SPARSE_RUNTIME_DEVICE void multiply_kept(const unsigned char* slab,
                                         const std::uint32_t (&b)[Tile::kN][4],
                                         typename Tile::Sum (&acc)[Tile::kN][4]) {
  const int lane = ptx::thread() % 32;
  const auto* words = reinterpret_cast<const Word*>(slab) + kPiece * 32 + lane;
  const auto* metadata = reinterpret_cast<const std::uint32_t*>(
      slab + products(Tile::kValueBytes, true) * kProductBytes);
  const Word a = ptx::load_shared(words);
  const std::uint32_t word = ptx::load_shared(metadata + lane);
#pragma unroll
  for (int n = 0; n < Tile::kN; ++n) sparse_product<Tile, kPiece>(acc[n], a.r, b[n], word);
}

// 64 bytes of inputs: one ldmatrix a column of 8 tokens, two products (dense) or one (two of four).
template <typename Tile, int kPiece>
SPARSE_RUNTIME_DEVICE void multiply_piece(const unsigned char* stage, int warp_out, int warp_tok,
                                          typename Tile::Sum (&acc)[Tile::kM][Tile::kN][4]) {
  const int lane = ptx::thread() % 32;
  std::uint32_t b[Tile::kN][4];
#pragma unroll
  for (int n = 0; n < Tile::kN; ++n) {
    const int token = (warp_tok * Tile::kN + n) * 8 + lane % 8;
    const int at = swizzled<Tile::kRow>(token, kPiece * 4 + lane / 8);
    ptx::load_matrices(b[n], stage + Tile::kWeightStage + at);
  }
#pragma unroll
  for (int m = 0; m < Tile::kM; ++m) {
    const int tile = warp_out * Tile::kM + m;
    const unsigned char* slab = stage + tile * Tile::kSlab;
    if constexpr (Tile::kSparse) {
      multiply_kept<Tile, kPiece>(slab, b, acc[m]);
    } else {
      const auto* words = reinterpret_cast<const Word*>(slab) + kPiece * 64 + lane;
      const Word a0 = ptx::load_shared(words), a1 = ptx::load_shared(words + 32);
#pragma unroll
      for (int n = 0; n < Tile::kN; ++n) {
        product<Tile>(acc[m][n], a0.r, b[n][0], b[n][1]);
        product<Tile>(acc[m][n], a1.r, b[n][2], b[n][3]);
      }
    }
    if constexpr (Tile::kHasRest) {
      const auto* masks = reinterpret_cast<const int*>(stage + Tile::kMasksAt);
      // The same for all lanes: most slabs have no rest, and cost this test.
      if (ptx::load_shared(masks + tile) >> kPiece & 1) {
        multiply_kept<Tile, kPiece>(slab + Tile::kRestAt, b, acc[m]);
      }
    }
  }
}

// Sums of the other splits, added in their order by the last to arrive; false for all others.
template <typename Tile>
SPARSE_RUNTIME_DEVICE bool gather_splits(const SrLinear& p, int tile, int split,
                                         typename Tile::Sum (&acc)[Tile::kM][Tile::kN][4]) {
  using Sum = typename Tile::Sum;
  constexpr int each = Tile::kM * Tile::kN * 4;
  auto* parts = static_cast<Sum*>(p.partials) +
                static_cast<std::int64_t>(tile) * p.split_k * each * Tile::kThreads;
  const int thread = ptx::thread();
#pragma unroll
  for (int i = 0; i < each; ++i) {
    ptx::store(parts + (split * each + i) * Tile::kThreads + thread,
               acc[i / 4 / Tile::kN][i / 4 % Tile::kN][i % 4]);
  }
  if (!is_last(p.tile_counters + tile, p.split_k)) return false;
  // Many sums of a split at once: one load takes as long as all of them.
  constexpr int at_once = each < 32 ? each : 32;
#pragma unroll
  for (int first = 0; first < each; first += at_once) {
#pragma unroll 1
    for (int other = 0; other < p.split_k; ++other) {
#pragma unroll
      for (int i = first; i < first + at_once; ++i) {
        const Sum part = ptx::load(parts + (other * each + i) * Tile::kThreads + thread);
        Sum& sum = acc[i / 4 / Tile::kN][i / 4 % Tile::kN][i % 4];
        sum = other == 0 ? part : sum + part;
      }
    }
  }
  return true;
}

// Grid: (tiles of outputs * tiles of tokens, split_k). Tiles of outputs vary fastest: neighbours
// share their tokens.
template <typename Tile>
SPARSE_RUNTIME_KERNEL void
#ifdef __CUDACC__
// The 1 leaves the compiler all registers: else it spills, for more blocks than shared memory fits.
__launch_bounds__(Tile::kThreads, 1)
#endif
    linear_kernel(const SrLinear p) {
  unsigned char* const shared = ptx::shared_memory();
  const int tiles_out = (p.out_features + Tile::kOut - 1) / Tile::kOut;
  const int tile_out = ptx::block_x() % tiles_out, tile_tok = ptx::block_x() / tiles_out;
  const int split = ptx::block_y();
  const int share = (slabs(p.in_features) + p.split_k - 1) / p.split_k;
  const int first = split * share;
  const int end = first + share < slabs(p.in_features) ? first + share : slabs(p.in_features);
  const int warp = ptx::thread() / 32;
  const int warp_out = warp % Tile::kWarpsOut, warp_tok = warp / Tile::kWarpsOut;

  typename Tile::Sum acc[Tile::kM][Tile::kN][4] = {};
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (first + i < end) fetch<Tile>(p, tile_out, tile_tok, first + i, shared + i * Tile::kStage);
    ptx::commit_copies();
  }
  for (int slab = first; slab < end; ++slab) {
    ptx::wait_copies<Tile::kStages - 2>();
    ptx::sync_threads();
    const int ahead = slab + Tile::kStages - 1;
    if (ahead < end) {
      fetch<Tile>(p, tile_out, tile_tok, ahead,
                  shared + (ahead - first) % Tile::kStages * Tile::kStage);
    }
    ptx::commit_copies();
    const unsigned char* stage = shared + (slab - first) % Tile::kStages * Tile::kStage;
    multiply_piece<Tile, 0>(stage, warp_out, warp_tok, acc);
    if constexpr (Tile::kValueBytes == 2) multiply_piece<Tile, 1>(stage, warp_out, warp_tok, acc);
  }
  ptx::wait_copies<0>();
  ptx::sync_threads();
  if (p.split_k > 1 && !gather_splits<Tile>(p, ptx::block_x(), split, acc)) return;

  // Through shared memory, so that what a warp stores of a token lies side by side.
  auto* const staged = reinterpret_cast<typename Tile::Sum*>(shared);
  const int lane = ptx::thread() % 32;
#pragma unroll
  for (int m = 0; m < Tile::kM; ++m) {
#pragma unroll
    for (int n = 0; n < Tile::kN; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int output = (warp_out * Tile::kM + m) * 16 + d_row(lane, r);
        const int token = (warp_tok * Tile::kN + n) * 8 + d_column(lane, r);
        ptx::store_shared(staged + token * (Tile::kOut + 4) + output, acc[m][n][r]);
      }
    }
  }
  ptx::sync_threads();
  store_tile<Tile>(p, staged, tile_out, tile_tok);
}

}  // namespace sparse_runtime::mma
