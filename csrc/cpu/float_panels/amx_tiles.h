// Products of AMX tiles, for weights of any type: 16 outputs x 64 bytes of inputs times 64 bytes of
// inputs x 16 slots, the latter as the grouped and the pairs form have them. Four products share
// two tiles of each: 32 outputs x 32 slots of accumulators.
//
// Included by a unit within its anonymous namespace, after a definition of
// TILE_PRODUCT(sums, weights, inputs), the instruction.

constexpr int kTileRows = 16;
constexpr int kTileBytes = 1024;
constexpr int kRowBytes = 64;
constexpr int kSlotBytes = 4 * panels::kSlots;  // one group of inputs, or pair
constexpr std::int64_t kAccRowBytes = 4 * panels::kSlots;
// On Sapphire Rapids a tile store 2000 cycles (0.55 us) or more after the one before takes 1000
// cycles longer. A pass over 768 inputs lasts that long, so it stores a tile of sums this many
// columns before its end; the end stores it again.
constexpr int kColumnsAfterStore = 12;

#include "cpu/tile_config.h"

// The tiles of one strip of 16 rows, in order of their column.
struct Strip {
  const char* tiles;  // kTileBytes each
  const std::uint16_t* columns;
  std::int64_t count;
};

#define SIMD_INLINE inline __attribute__((always_inline))

SIMD_INLINE const char* inputs_of(const char* x, int column) {
  return x + column * (16 * kSlotBytes);
}

// Tiles 0..3: accumulators [strip][vector]; 4, 5: weights; 6, 7: inputs.
template <int kVectors>
SIMD_INLINE void clear() {
  _tile_zero(0);
  _tile_zero(2);
  if (kVectors == 2) {
    _tile_zero(1);
    _tile_zero(3);
  }
}

template <int kVectors>
SIMD_INLINE void load_sums(const Sum* acc) {
  const Sum* below = acc + kTileRows * panels::kSlots;
  _tile_loadd(0, acc, kAccRowBytes);
  _tile_loadd(2, below, kAccRowBytes);
  if (kVectors == 2) {
    _tile_loadd(1, acc + 16, kAccRowBytes);
    _tile_loadd(3, below + 16, kAccRowBytes);
  }
}

template <int kVectors>
SIMD_INLINE void load_inputs(const char* x, int column) {
  _tile_loadd(6, inputs_of(x, column), kSlotBytes);
  if (kVectors == 2) _tile_loadd(7, inputs_of(x, column) + 64, kSlotBytes);
}

template <int kVectors>
SIMD_INLINE void multiply_top() {
  TILE_PRODUCT(0, 4, 6);
  if (kVectors == 2) TILE_PRODUCT(1, 4, 7);
}

template <int kVectors>
SIMD_INLINE void multiply_bottom() {
  TILE_PRODUCT(2, 5, 6);
  if (kVectors == 2) TILE_PRODUCT(3, 5, 7);
}

// Two strips, kVectors vectors of slots from x on; added to acc unless they are the first columns.
template <int kVectors>
void multiply(const Strip& top, const Strip& bottom, const char* x, bool first, Sum* acc) {
  if (first) {
    clear<kVectors>();
  } else {
    load_sums<kVectors>(acc);
  }
  std::int64_t t = 0, b = 0;
  while (t < top.count || b < bottom.count) {
    const int none = 1 << 16;
    const int top_column = t < top.count ? top.columns[t] : none;
    const int bottom_column = b < bottom.count ? bottom.columns[b] : none;
    const int column = top_column < bottom_column ? top_column : bottom_column;
    load_inputs<kVectors>(x, column);
    if (top_column == column) {
      _tile_loadd(4, top.tiles + t * kTileBytes, kRowBytes);
      multiply_top<kVectors>();
      ++t;
    }
    if (bottom_column == column) {
      _tile_loadd(5, bottom.tiles + b * kTileBytes, kRowBytes);
      multiply_bottom<kVectors>();
      ++b;
    }
    if (top.count - t == kColumnsAfterStore) _tile_stored(0, acc, kAccRowBytes);
  }
  Sum* below = acc + kTileRows * panels::kSlots;
  _tile_stored(0, acc, kAccRowBytes);
  _tile_stored(2, below, kAccRowBytes);
  if (kVectors == 2) {
    _tile_stored(1, acc + 16, kAccRowBytes);
    _tile_stored(3, below + 16, kAccRowBytes);
  }
}

// All panels of the call, for the two strips of rows [row, row + 32) of it.
void multiply_panels(const Strip& top, const Strip& bottom, const Call& call, std::int64_t row,
                     bool first) {
  for (int p = 0; p < call.panels; ++p) {
    const char* x = reinterpret_cast<const char*>(call.x) + p * call.panel_stride;
    Sum* acc = call.acc + (p * call.rows + row) * panels::kSlots;
    const int vectors = p + 1 == call.panels ? call.last_vectors : panels::kVectors;
    int v = 0;
    for (; v + 2 <= vectors; v += 2) multiply<2>(top, bottom, x + 64 * v, first, acc + 16 * v);
    if (v < vectors) multiply<1>(top, bottom, x + 64 * v, first, acc + 16 * v);
  }
}
