// AVX-512 with VNNI: vpdpbusd multiplies four unsigned by four signed bytes into each of sixteen
// int32 lanes, without saturation. Weights lie in the lanes, activations are broadcast.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "core/int8_layout.h"
#include "cpu/int8_linear/kernels.h"

namespace sparse_runtime::int8_linear {
namespace {

constexpr int kVectorFloats = 16;
// 6 tokens x 4 panels = 24 accumulators, 4 weight registers, 1 broadcast: 29 of 32 registers.
constexpr int kTileTokens = 6;

// Loops over tokens and panels carry an unroll pragma: without it GCC keeps the accumulators in
// memory as well as in registers, at half the speed.

using int8_layout::kCellBytes;
using int8_layout::kGroup;
using int8_layout::kLanes;

inline __attribute__((always_inline)) __m512i broadcast_inputs(const std::uint8_t* x, int inputs) {
  int word = 0;
  __builtin_memcpy(&word, x, static_cast<std::size_t>(inputs));
  return _mm512_set1_epi32(word);
}

template <int kTokens, int kPanels>
inline __attribute__((always_inline)) void add_cells(const std::uint8_t* x, std::int64_t x_stride,
                                                     int inputs, const std::int8_t* cell,
                                                     std::int64_t panel_bytes,
                                                     __m512i (&sums)[kTokens][kPanels]) {
  __m512i weights[kPanels];
#pragma GCC unroll 8
  for (int panel = 0; panel < kPanels; ++panel) {
    weights[panel] = _mm512_loadu_si512(cell + panel * panel_bytes);
  }
#pragma GCC unroll 8
  for (int token = 0; token < kTokens; ++token) {
    const __m512i inputs4 = broadcast_inputs(x + token * x_stride, inputs);
#pragma GCC unroll 8
    for (int panel = 0; panel < kPanels; ++panel) {
      sums[token][panel] = _mm512_dpbusd_epi32(sums[token][panel], inputs4, weights[panel]);
    }
  }
}

template <int kTokens, int kPanels>
void accumulate_tile(const Tile& tile, std::int32_t* acc) {
  const std::int64_t panel_bytes = int8_layout::panel_bytes(tile.k);
  const std::int64_t full_groups = tile.k / kGroup;
  const int rest = static_cast<int>(tile.k % kGroup);
  const std::uint8_t* x = tile.x;
  const std::int8_t* cell = tile.panels;

  __m512i sums[kTokens][kPanels];
#pragma GCC unroll 8
  for (int panel = 0; panel < kPanels; ++panel) {
    const __m512i start = _mm512_loadu_si512(tile.start + panel * kLanes);
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) sums[token][panel] = start;
  }
  for (std::int64_t g = 0; g < full_groups; ++g, x += kGroup, cell += kCellBytes) {
    add_cells<kTokens, kPanels>(x, tile.x_stride, kGroup, cell, panel_bytes, sums);
  }
  if (rest != 0) add_cells<kTokens, kPanels>(x, tile.x_stride, rest, cell, panel_bytes, sums);
#pragma GCC unroll 8
  for (int token = 0; token < kTokens; ++token) {
#pragma GCC unroll 8
    for (int panel = 0; panel < kPanels; ++panel) {
      _mm512_storeu_si512(acc + token * kTileColumns + panel * kLanes, sums[token][panel]);
    }
  }
}

template <int kTokens>
void accumulate_panels(const Tile& tile, std::int32_t* acc) {
  switch (tile.panel_count) {
    case 1:
      return accumulate_tile<kTokens, 1>(tile, acc);
    case 2:
      return accumulate_tile<kTokens, 2>(tile, acc);
    case 3:
      return accumulate_tile<kTokens, 3>(tile, acc);
    default:
      return accumulate_tile<kTokens, 4>(tile, acc);
  }
}

void accumulate(const Tile& tile, std::int32_t* acc) {
  switch (tile.tokens) {
    case 1:
      return accumulate_panels<1>(tile, acc);
    case 2:
      return accumulate_panels<2>(tile, acc);
    case 3:
      return accumulate_panels<3>(tile, acc);
    case 4:
      return accumulate_panels<4>(tile, acc);
    case 5:
      return accumulate_panels<5>(tile, acc);
    default:
      return accumulate_panels<6>(tile, acc);
  }
}

}  // namespace
}  // namespace sparse_runtime::int8_linear

#include "cpu/int8_linear/float_rows.h"

namespace sparse_runtime::int8_linear {

const Kernels kAvx512VnniKernels = {
    kTileTokens, accumulate, finish, quantize_row, quantize_row_asymmetric, quantize_row_static};

}  // namespace sparse_runtime::int8_linear
