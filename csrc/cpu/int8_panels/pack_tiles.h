// Packing of the layouts that AMX reads: tiles of 16 outputs x 64 inputs (kTiles, kTileBits).
#pragma once

#include <cstdint>

#include "cpu/int8_panels/int8_panels.h"

namespace sparse_runtime::int8_panels {

// Fills everything but row_sums of a weight whose layout (kTiles or kTileBits), n and k are set.
// w: int8 [n, k] row-major.
void pack_tiles(const std::int8_t* w, Weight& weight);
// Writes all n * k values of w.
void unpack_tiles(const Weight& weight, std::int8_t* w);

// What pack_tiles would store, counted without storing it.
struct TileCounts {
  std::int64_t tiles;         // that are not all 0: the products of a call are proportional to it
  std::int64_t nonzeros;      // values that are not 0
  std::int64_t tiles_bytes;   // of Weight::bytes() but for row_sums, as kTiles
  std::int64_t bits_bytes;    // the same as kTileBits
};
TileCounts count_tiles(const std::int8_t* w, std::int64_t n, std::int64_t k);

}  // namespace sparse_runtime::int8_panels
