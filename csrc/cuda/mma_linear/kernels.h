// The kernels that are built, for GPUs and for the emulator: every type and structure on three
// tiles.
#pragma once

#include "cuda/mma_linear/kernel.h"

namespace sparse_runtime::mma {

// Large batches; some hundred tokens; few tokens, whose time is the reading of weights.
template <typename T, Structure kStructure>
using LargeTile = Tile<T, kStructure, 128, 128, 2, 2, 3>;
template <typename T, Structure kStructure>
using MiddleTile = Tile<T, kStructure, 64, 64, 2, 2, 4>;
template <typename T, Structure kStructure>
using SmallTile = Tile<T, kStructure, 64, 16, 4, 1, 4>;

#ifndef __CUDACC_RTC__  // which compiles single kernels

struct Kernel {
  const char* name;
  int type, structure;
  int tile_out, tile_tok, threads, shared_bytes;
  // Bytes of partial sums a tile and split.
  int partial_bytes;
  // The function for a GPU, or for the emulator.
  void (*function)(SrLinear);
};

template <typename T>
struct TypeOf;
template <>
struct TypeOf<std::int8_t> {
  static constexpr int value = SR_INT8;
};
template <>
struct TypeOf<ptx::BF16> {
  static constexpr int value = SR_BF16;
};
template <>
struct TypeOf<ptx::F16> {
  static constexpr int value = SR_F16;
};

template <typename Tile>
constexpr Kernel describe(const char* name) {
  return {name,
          TypeOf<typename Tile::T>::value,
          static_cast<int>(Tile::kStructure),
          Tile::kOut,
          Tile::kTok,
          Tile::kThreads,
          Tile::kShared,
          Tile::kOut * Tile::kTok * 4,
          linear_kernel<Tile>};
}

// One translation unit a type and structure defines its three.
struct KernelGroup {
  Kernel kernels[3];
};
extern const KernelGroup kInt8Dense, kInt8TwoOfFour, kInt8Exact, kBf16Dense, kBf16TwoOfFour,
    kBf16Exact, kF16Dense, kF16TwoOfFour, kF16Exact;

#define SPARSE_RUNTIME_KERNELS(VARIABLE, NAME, T, STRUCTURE)         \
  namespace sparse_runtime::mma {                                    \
  const KernelGroup VARIABLE{{                                       \
      describe<LargeTile<T, Structure::STRUCTURE>>(NAME ".128x128"), \
      describe<MiddleTile<T, Structure::STRUCTURE>>(NAME ".64x64"),  \
      describe<SmallTile<T, Structure::STRUCTURE>>(NAME ".64x16"),   \
  }};                                                                \
  }

#endif  // __CUDACC_RTC__

}  // namespace sparse_runtime::mma
