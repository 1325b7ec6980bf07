// Portable C++: no flags beyond the compiler's defaults, runs everywhere.
#include <cstddef>
#include <cstdint>

#include "core/int8_layout.h"
#include "cpu/int8_linear/kernels.h"

namespace sparse_runtime::int8_linear {
namespace {

constexpr int kVectorFloats = 4;
constexpr int kTileTokens = 4;
// Inputs widened at a time: a multiple of kGroup, small enough for the L1 cache.
constexpr std::int64_t kChunk = 256;

using int8_layout::kCellBytes;
using int8_layout::kGroup;
using int8_layout::kLanes;

// Unsigned: the sum is exact modulo 2^32, which int32 overflow would not be in C++.
using Sum = std::uint32_t;

// Compilers turn this loop into widening multiply-adds (pmaddwd, smlal). Four sums at once share
// the loads of the weights.
void add_dots(const std::int16_t (&inputs)[kTileTokens][kChunk], const std::int16_t* weights,
              std::int64_t count, Sum* sums) {
  std::int32_t dots[kTileTokens] = {};
  for (std::int64_t i = 0; i < count; ++i) {
    dots[0] += inputs[0][i] * weights[i];
    dots[1] += inputs[1][i] * weights[i];
    dots[2] += inputs[2][i] * weights[i];
    dots[3] += inputs[3][i] * weights[i];
  }
  for (int token = 0; token < kTileTokens; ++token) {
    sums[token * kTileColumns] += static_cast<Sum>(dots[token]);
  }
}

// Inputs [first, first + count) of one output, of which first is a multiple of kGroup.
void widen_weights(const std::int8_t* output, std::int64_t first, std::int64_t count,
                   std::int16_t* wide) {
  std::int8_t bytes[kChunk];
  const std::int8_t* cell = output + first / kGroup * kCellBytes;
  for (std::int64_t i = 0; i < count; i += kGroup, cell += kCellBytes) {
    __builtin_memcpy(bytes + i, cell, kGroup);
  }
  for (std::int64_t i = 0; i < count; ++i) wide[i] = bytes[i];
}

void accumulate_chunk(const Tile& tile, std::int64_t first, std::int64_t count, Sum* sums) {
  std::int16_t inputs[kTileTokens][kChunk] = {};
  std::int16_t weights[kChunk];
  const std::int64_t panel_bytes = int8_layout::panel_bytes(tile.k);
  for (int token = 0; token < tile.tokens; ++token) {
    const std::uint8_t* x = tile.x + token * tile.x_stride + first;
    for (std::int64_t i = 0; i < count; ++i) inputs[token][i] = x[i];
  }
  for (int column = 0; column < tile.panel_count * kLanes; ++column) {
    widen_weights(tile.panels + column / kLanes * panel_bytes + column % kLanes * kGroup, first,
                  count, weights);
    add_dots(inputs, weights, count, sums + column);
  }
}

void accumulate(const Tile& tile, std::int32_t* acc) {
  const std::size_t columns = static_cast<std::size_t>(tile.panel_count) * kLanes;
  Sum sums[kTileTokens * kTileColumns] = {};
  for (int token = 0; token < tile.tokens; ++token) {
    __builtin_memcpy(sums + token * kTileColumns, tile.start, columns * sizeof(Sum));
  }
  for (std::int64_t first = 0; first < tile.k; first += kChunk) {
    const std::int64_t left = tile.k - first;
    accumulate_chunk(tile, first, left < kChunk ? left : kChunk, sums);
  }
  for (int token = 0; token < tile.tokens; ++token) {
    __builtin_memcpy(acc + token * kTileColumns, sums + token * kTileColumns,
                     columns * sizeof(Sum));
  }
}

}  // namespace
}  // namespace sparse_runtime::int8_linear

#include "cpu/int8_linear/float_rows.h"

namespace sparse_runtime::int8_linear {

const Kernels kGenericKernels = {
    kTileTokens, accumulate, finish, quantize_row, quantize_row_asymmetric, quantize_row_static};

}  // namespace sparse_runtime::int8_linear
