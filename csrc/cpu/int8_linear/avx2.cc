// AVX2. vpmaddubsw would saturate at int16, so bytes are widened first, by shifts and masks within
// the 32-bit lane: even and odd inputs separately. vpmaddwd then gives exact sums that lie in the
// lane of their output, with no shuffle.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "core/int8_layout.h"
#include "cpu/int8_linear/kernels.h"

namespace sparse_runtime::int8_linear {
namespace {

constexpr int kVectorFloats = 8;
// 4 tokens x 2 registers of eight outputs = 8 accumulators, 4 weight registers, 2 for inputs.
constexpr int kTileTokens = 4;

using int8_layout::kCellBytes;
using int8_layout::kGroup;
using int8_layout::kLanes;

inline __attribute__((always_inline)) __m256i broadcast_inputs(const std::uint8_t* x, int inputs) {
  int word = 0;
  __builtin_memcpy(&word, x, static_cast<std::size_t>(inputs));
  return _mm256_set1_epi32(word);
}

template <int kTokens>
inline __attribute__((always_inline)) void add_cell(const std::uint8_t* x, std::int64_t x_stride,
                                                    int inputs, const std::int8_t* cell,
                                                    __m256i (&sums)[kTokens][2]) {
  const __m256i even_bytes = _mm256_set1_epi16(0x00ff);
  __m256i even[2];
  __m256i odd[2];
#pragma GCC unroll 8
  for (int half = 0; half < 2; ++half) {
    const __m256i w =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(cell + half * (kCellBytes / 2)));
    even[half] = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
    odd[half] = _mm256_srai_epi16(w, 8);
  }
#pragma GCC unroll 8
  for (int token = 0; token < kTokens; ++token) {
    const __m256i inputs4 = broadcast_inputs(x + token * x_stride, inputs);
    const __m256i x_even = _mm256_and_si256(inputs4, even_bytes);
    const __m256i x_odd = _mm256_srli_epi16(inputs4, 8);
#pragma GCC unroll 8
    for (int half = 0; half < 2; ++half) {
      const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(x_even, even[half]),
                                                _mm256_madd_epi16(x_odd, odd[half]));
      sums[token][half] = _mm256_add_epi32(sums[token][half], products);
    }
  }
}

template <int kTokens>
void accumulate_panel(const Tile& tile, int panel, std::int32_t* acc) {
  const std::int64_t full_groups = tile.k / kGroup;
  const int rest = static_cast<int>(tile.k % kGroup);
  const std::uint8_t* x = tile.x;
  const std::int8_t* cell = tile.panels + panel * int8_layout::panel_bytes(tile.k);
  const std::int32_t* start = tile.start + panel * kLanes;

  __m256i sums[kTokens][2];
#pragma GCC unroll 8
  for (int half = 0; half < 2; ++half) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start + half * 8));
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) sums[token][half] = first;
  }
  for (std::int64_t g = 0; g < full_groups; ++g, x += kGroup, cell += kCellBytes) {
    add_cell<kTokens>(x, tile.x_stride, kGroup, cell, sums);
  }
  if (rest != 0) add_cell<kTokens>(x, tile.x_stride, rest, cell, sums);
#pragma GCC unroll 8
  for (int token = 0; token < kTokens; ++token) {
    std::int32_t* const to = acc + token * kTileColumns + panel * kLanes;
#pragma GCC unroll 8
    for (int half = 0; half < 2; ++half) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + half * 8), sums[token][half]);
    }
  }
}

template <int kTokens>
void accumulate_panels(const Tile& tile, std::int32_t* acc) {
  for (int panel = 0; panel < tile.panel_count; ++panel) {
    accumulate_panel<kTokens>(tile, panel, acc);
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
    default:
      return accumulate_panels<4>(tile, acc);
  }
}

}  // namespace
}  // namespace sparse_runtime::int8_linear

#include "cpu/int8_linear/float_rows.h"

namespace sparse_runtime::int8_linear {

const Kernels kAvx2Kernels = {
    kTileTokens, accumulate, finish, quantize_row, quantize_row_asymmetric, quantize_row_static};

}  // namespace sparse_runtime::int8_linear
