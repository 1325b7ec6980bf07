// One pass of AMX: the tiles of up to two bands of 16 outputs times one or two vectors of 16 slots.
// Four sums stay in tile registers while the columns go by, and every loaded tile is used twice.
// Included by amx.cc into its anonymous namespace.
#pragma once

#include "cpu/tile_config.h"

// nothrow: for objects that live while intrinsics are called, an unoptimized build would else refer
// to the exception handler by a symbol that the linker merges with those of other units.
#define SPARSE_RUNTIME_INLINE inline __attribute__((always_inline, nothrow))

constexpr std::int64_t kRows = 16;      // of a tile
constexpr std::int64_t kRowBytes = 64;  // of a tile
constexpr std::int64_t kTileBytes = kRows * kRowBytes;
constexpr std::int64_t kGroupBytes = 4 * panels::kSlots;  // from one group of a panel to the next
constexpr std::int64_t kColumnBytes = kRows * kGroupBytes;
constexpr std::int64_t kAccRowBytes = 4 * panels::kSlots;

// Some columns of a block of two bands; the first `common` are those of both.
struct Chunk {
  std::int64_t row;  // of the call, where the block begins
  bool first;        // of the block: sums begin at 0, else at acc
  std::int64_t common;
  std::int64_t count[2];       // columns of each band
  std::int64_t first_tile[2];  // of each band, in the weight; the others follow it
};

// What a pass reads and writes.
struct Operands {
  const std::int8_t* tiles[2];
  const std::uint16_t* columns[2];
  const std::uint8_t* x;
  std::int32_t* acc;
};

// Registers: 0, 1 sums of band 0; 2, 3 sums of band 1; 4, 5 weights; 6, 7 activations.
template <int kVectors>
SPARSE_RUNTIME_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(2);
  if (kVectors == 2) {
    _tile_zero(1);
    _tile_zero(3);
  }
}

template <int kVectors>
SPARSE_RUNTIME_INLINE void load_sums(const std::int32_t* acc) {
  const std::int32_t* band1 = acc + kRows * panels::kSlots;
  _tile_loadd(0, acc, kAccRowBytes);
  _tile_loadd(2, band1, kAccRowBytes);
  if (kVectors == 2) {
    _tile_loadd(1, acc + panels::kVector, kAccRowBytes);
    _tile_loadd(3, band1 + panels::kVector, kAccRowBytes);
  }
}

template <int kVectors>
SPARSE_RUNTIME_INLINE void store_sums(std::int32_t* acc) {
  std::int32_t* band1 = acc + kRows * panels::kSlots;
  _tile_stored(0, acc, kAccRowBytes);
  _tile_stored(2, band1, kAccRowBytes);
  if (kVectors == 2) {
    _tile_stored(1, acc + panels::kVector, kAccRowBytes);
    _tile_stored(3, band1 + panels::kVector, kAccRowBytes);
  }
}

// Brings the lines of acc near while the products run: a store that has to fetch its line first
// holds up the next pass.
template <int kVectors>
class AccPrefetch {
 public:
  SPARSE_RUNTIME_INLINE explicit AccPrefetch(const std::int32_t* acc) : next_(acc) {}
  SPARSE_RUNTIME_INLINE void step() {
    if (rows_left_ == 0) return;
#pragma GCC unroll 4
    for (int row = 0; row < kRowsAStep; ++row) {
      __builtin_prefetch(next_ + row * panels::kSlots);
      if (kVectors == 2) __builtin_prefetch(next_ + row * panels::kSlots + panels::kVector);
    }
    next_ += kRowsAStep * panels::kSlots;
    rows_left_ -= kRowsAStep;
  }

 private:
  static constexpr int kRowsAStep = 4;
  const std::int32_t* next_;
  int rows_left_ = static_cast<int>(kRowBlock);
};

// Activations are loaded with the streaming hint: a pass uses them once, and they would otherwise
// push the weights, which the next pass wants again, out of the L1 cache.
template <int kVectors>
SPARSE_RUNTIME_INLINE void load_slots(const std::uint8_t* column) {
  _tile_stream_loadd(6, column, kGroupBytes);
  if (kVectors == 2) _tile_stream_loadd(7, column + kRowBytes, kGroupBytes);
}

// Columns of both bands. Each load of the next column stands where the register has had its last
// use: the loads, not the products, would else be waited for. `aside` is work that is spread over
// the columns.
template <int kVectors, class Aside>
SPARSE_RUNTIME_INLINE void multiply_common(const Operands& o, std::int64_t count, Aside& aside) {
  if (count == 0) return;
  AccPrefetch<kVectors> acc_lines(o.acc);
  const std::int8_t* w0 = o.tiles[0];
  const std::int8_t* w1 = o.tiles[1];
  load_slots<kVectors>(o.x + o.columns[0][0] * kColumnBytes);
  _tile_loadd(4, w0, kRowBytes);
  _tile_loadd(5, w1, kRowBytes);
  for (std::int64_t i = 1; i < count; ++i) {
    const std::uint8_t* column = o.x + o.columns[0][i] * kColumnBytes;
    w0 += kTileBytes;
    w1 += kTileBytes;
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(2, 5, 6);
    _tile_stream_loadd(6, column, kGroupBytes);
    if (kVectors == 2) _tile_dpbsud(1, 4, 7);
    _tile_loadd(4, w0, kRowBytes);
    if (kVectors == 2) _tile_dpbsud(3, 5, 7);
    _tile_loadd(5, w1, kRowBytes);
    if (kVectors == 2) _tile_stream_loadd(7, column + kRowBytes, kGroupBytes);
    acc_lines.step();
    aside.step();
  }
  _tile_dpbsud(0, 4, 6);
  _tile_dpbsud(2, 5, 6);
  if (kVectors == 2) {
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(3, 5, 7);
  }
  aside.step();
}

// Columns first .. count of one band.
template <int kBand, int kVectors, class Aside>
SPARSE_RUNTIME_INLINE void multiply_alone(const Operands& o, std::int64_t first, std::int64_t count,
                                          Aside& aside) {
  for (std::int64_t i = first; i < count; ++i) {
    load_slots<kVectors>(o.x + o.columns[kBand][i] * kColumnBytes);
    _tile_loadd(4, o.tiles[kBand] + i * kTileBytes, kRowBytes);
    if (kBand == 0) {
      _tile_dpbsud(0, 4, 6);
      if (kVectors == 2) _tile_dpbsud(1, 4, 7);
    } else {
      _tile_dpbsud(2, 4, 6);
      if (kVectors == 2) _tile_dpbsud(3, 4, 7);
    }
    aside.step();
  }
}

template <int kVectors, class Aside>
SPARSE_RUNTIME_INLINE void multiply(const Chunk& chunk, const Operands& o, Aside& aside) {
  if (chunk.first) {
    clear_sums<kVectors>();
  } else {
    load_sums<kVectors>(o.acc);
  }
  multiply_common<kVectors>(o, chunk.common, aside);
  multiply_alone<0, kVectors>(o, chunk.common, chunk.count[0], aside);
  multiply_alone<1, kVectors>(o, chunk.common, chunk.count[1], aside);
  store_sums<kVectors>(o.acc);
}
