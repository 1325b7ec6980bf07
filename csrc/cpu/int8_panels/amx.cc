// AMX: one instruction multiplies a tile of 16 outputs x 64 inputs with one of 64 inputs x 16 token
// slots. A tile of activations is read straight from a grouped panel (rows 256 bytes apart), a tile
// of sums is stored straight to acc.
//
// Two bands of 16 outputs (a block) times two vectors of 16 slots are one pass: four sums stay in
// tile registers while the inputs go by, and each loaded tile is used twice.
#include <immintrin.h>

#include <cstdint>

#include "core/panels.h"
#include "cpu/int8_panels/kernels.h"

namespace sparse_runtime::int8_panels {
namespace {

#define SPARSE_RUNTIME_INLINE inline __attribute__((always_inline))

constexpr std::int64_t kRows = 16;          // of a tile
constexpr std::int64_t kRowBytes = 64;      // of a tile
constexpr std::int64_t kTileBytes = kRows * kRowBytes;
constexpr std::int64_t kGroupBytes = 4 * panels::kSlots;  // from one group of a panel to the next
constexpr std::int64_t kColumnBytes = kRows * kGroupBytes;
constexpr std::int64_t kAccRowBytes = panels::kSlots * 4;

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kConfig;

// Tiles of some columns of a block. The first `common` columns are those of both bands.
struct Chunk {
  const std::int8_t* tiles[2];
  const std::uint16_t* columns[2];
  std::int64_t common;
  std::int64_t count[2];
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

// Columns of both bands. The loads of the next column stand as early as their registers are free:
// they, not the products, would else be waited for.
template <int kVectors, class Aside>
SPARSE_RUNTIME_INLINE void multiply_common(const Chunk& chunk, const std::uint8_t* x,
                                           Aside& aside) {
  if (chunk.common == 0) return;
  const std::int8_t* w0 = chunk.tiles[0];
  const std::int8_t* w1 = chunk.tiles[1];
  const std::uint8_t* column = x + chunk.columns[0][0] * kColumnBytes;
  _tile_loadd(6, column, kGroupBytes);
  _tile_loadd(4, w0, kRowBytes);
  _tile_loadd(5, w1, kRowBytes);
  if (kVectors == 2) _tile_loadd(7, column + kRowBytes, kGroupBytes);
  for (std::int64_t i = 1; i < chunk.common; ++i) {
    column = x + chunk.columns[0][i] * kColumnBytes;
    w0 += kTileBytes;
    w1 += kTileBytes;
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(2, 5, 6);
    _tile_loadd(6, column, kGroupBytes);
    if (kVectors == 2) _tile_dpbsud(1, 4, 7);
    _tile_loadd(4, w0, kRowBytes);
    if (kVectors == 2) _tile_dpbsud(3, 5, 7);
    _tile_loadd(5, w1, kRowBytes);
    if (kVectors == 2) _tile_loadd(7, column + kRowBytes, kGroupBytes);
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

// Columns of one band alone.
template <int kBand, int kVectors, class Aside>
SPARSE_RUNTIME_INLINE void multiply_alone(const Chunk& chunk, const std::uint8_t* x,
                                          Aside& aside) {
  for (std::int64_t i = chunk.common; i < chunk.count[kBand]; ++i) {
    const std::uint8_t* column = x + chunk.columns[kBand][i] * kColumnBytes;
    _tile_loadd(4, chunk.tiles[kBand] + i * kTileBytes, kRowBytes);
    _tile_loadd(6, column, kGroupBytes);
    if (kVectors == 2) _tile_loadd(7, column + kRowBytes, kGroupBytes);
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
SPARSE_RUNTIME_INLINE void multiply(const Chunk& chunk, const std::uint8_t* x, std::int32_t* acc,
                                    bool first, Aside& aside) {
  if (first) {
    clear_sums<kVectors>();
  } else {
    load_sums<kVectors>(acc);
  }
  multiply_common<kVectors>(chunk, x, aside);
  multiply_alone<0, kVectors>(chunk, x, aside);
  multiply_alone<1, kVectors>(chunk, x, aside);
  store_sums<kVectors>(acc);
}

// acc (of the block's first row) += or, for the first chunk of a block, = the chunk's products.
template <class Aside>
SPARSE_RUNTIME_INLINE void multiply_panels(const Chunk& chunk, const Call& call, std::int32_t* acc,
                                           bool first, Aside& aside) {
  for (int panel = 0; panel < call.panels; ++panel) {
    const int vectors = panel + 1 < call.panels ? panels::kVectors : call.last_vectors;
    const std::uint8_t* x = call.x + panel * call.panel_stride;
    std::int32_t* sums = acc + panel * call.rows * panels::kSlots;
    int vector = 0;
    for (; vector + 2 <= vectors; vector += 2) {
      multiply<2>(chunk, x + vector * kRowBytes, sums + vector * panels::kVector, first, aside);
    }
    if (vector < vectors) {
      multiply<1>(chunk, x + vector * kRowBytes, sums + vector * panels::kVector, first, aside);
    }
  }
}

struct NoAside {
  SPARSE_RUNTIME_INLINE void step() {}
};

SPARSE_RUNTIME_INLINE std::int64_t common_columns(const Chunk& block) {
  std::int64_t i = 0;
  while (i < block.count[0] && i < block.count[1] && block.columns[0][i] == block.columns[1][i]) {
    ++i;
  }
  return i;
}

SPARSE_RUNTIME_INLINE Chunk whole_block(const WeightView& w, std::int64_t row) {
  const std::int32_t* starts = w.starts + row / kRows;
  Chunk block;
  for (int band = 0; band < 2; ++band) {
    block.tiles[band] = w.values + starts[band] * kTileBytes;
    block.columns[band] = w.index + starts[band];
    block.count[band] = starts[band + 1] - starts[band];
  }
  block.common = common_columns(block);
  return block;
}

void accumulate_tiles(const WeightView& w, const Call& call) {
  _tile_loadconfig(&kConfig);
  NoAside aside;
  for (std::int64_t row = 0; row < call.rows; row += kRowBlock) {
    const Chunk block = whole_block(w, call.row + row);
    multiply_panels(block, call, call.acc + row * panels::kSlots, true, aside);
  }
  _tile_release();
}

}  // namespace

const Kernels kAmxKernels = {{nullptr, nullptr, nullptr, nullptr, nullptr, accumulate_tiles, nullptr}};

}  // namespace sparse_runtime::int8_panels
