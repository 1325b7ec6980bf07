// AMX tiles of bf16 weights.
#include "core/panels.h"
#include "cpu/float_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::float_panels {
namespace {

using Sum = float;
#define TILE_PRODUCT(sums, weights, inputs) _tile_dpbf16ps(sums, weights, inputs)
#include "cpu/float_panels/amx_tiles.h"

Strip strip_of(const WeightView& w, std::int64_t row) {
  const std::int64_t s = row / kTileRows;
  const std::int64_t first = w.starts[s];
  return {reinterpret_cast<const char*>(w.halves) + first * kTileBytes, w.index + first,
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

}  // namespace

extern const Kernels kAmxKernels;
const Kernels kAmxKernels = {{nullptr, nullptr, nullptr, tiles}};

}  // namespace sparse_runtime::float_panels
