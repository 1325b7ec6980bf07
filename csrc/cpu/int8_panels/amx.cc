// AMX tiles of int8 weights, as they are or expanded from their nonzero bytes.
#include "core/panels.h"
#include "cpu/int8_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::int8_panels {
namespace {

using Sum = std::int32_t;
#define TILE_PRODUCT(sums, weights, inputs) _tile_dpbsud(sums, weights, inputs)
#include "cpu/amx_tiles.h"

Strip strip_of(const WeightView& w, std::int64_t row) {
  const std::int64_t s = row / kTileRows;
  const std::int64_t first = w.starts[s];
  return {reinterpret_cast<const char*>(w.values) + first * kTileBytes, w.index + first,
          w.starts[s + 1] - first};
}

void tiles(const WeightView& w, const Call& call) {
  const TileConfig config;
  _tile_loadconfig(&config);
  for (std::int64_t r = 0; r < call.rows; r += kRowBlock) {
    multiply_panels(strip_of(w, call.row + r), strip_of(w, call.row + r + kTileRows), call, r,
                    true);
  }
  _tile_release();
}

// Writes a tile's nonzero bytes to their places.
SIMD_INLINE void expand(const WeightView& w, std::int64_t tile, std::int8_t* out) {
  const std::uint64_t* masks = w.masks + tile * kTileRows;
  const std::int8_t* values = w.values + w.offsets[tile];
  for (int r = 0; r < kTileRows; ++r) {
    const __m512i packed = _mm512_loadu_si512(values);
    _mm512_store_si512(out + r * kRowBytes, _mm512_maskz_expand_epi8(masks[r], packed));
    values += __builtin_popcountll(masks[r]);
  }
}

// Columns whose tiles of two strips fit the scratch memory.
constexpr int kChunkColumns = kScratchBytes / kTileBytes / 2;

// Expands the tiles of columns below `end`, from tile `next` on, which is moved behind them.
Strip expand_strip(const WeightView& w, std::int64_t& next, std::int64_t last, int end,
                   std::int8_t* out) {
  const std::int64_t first = next;
  for (; next < last && w.index[next] < end; ++next) {
    expand(w, next, out + (next - first) * kTileBytes);
  }
  return {reinterpret_cast<const char*>(out), w.index + first, next - first};
}

void tile_bits(const WeightView& w, const Call& call) {
  const TileConfig config;
  _tile_loadconfig(&config);
  auto* scratch = static_cast<std::int8_t*>(call.scratch);
  const auto columns = static_cast<int>((w.k + kRowBytes - 1) / kRowBytes);
  for (std::int64_t r = 0; r < call.rows; r += kRowBlock) {
    const std::int64_t band = (call.row + r) / kTileRows;
    std::int64_t top = w.starts[band], bottom = w.starts[band + 1];
    for (int column = 0; column == 0 || column < columns; column += kChunkColumns) {
      const int end = column + kChunkColumns;
      const Strip upper = expand_strip(w, top, w.starts[band + 1], end, scratch);
      const Strip lower =
          expand_strip(w, bottom, w.starts[band + 2], end, scratch + kChunkColumns * kTileBytes);
      multiply_panels(upper, lower, call, r, column == 0);
    }
  }
  _tile_release();
}

}  // namespace

extern const Kernels kAmxKernels;
const Kernels kAmxKernels = {{nullptr, nullptr, nullptr, nullptr, nullptr, tiles, tile_bits}};

}  // namespace sparse_runtime::int8_panels
