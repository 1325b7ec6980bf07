// A tile holds outputs 16 b .. 16 b + 15 (its band) and inputs 64 c .. 64 c + 63 (its column).
// Tiles that are all zero are not stored. Bands are padded to an even number, inputs to a whole
// column.
//
//   starts  [bands + 1]   tiles of band b: starts[b] .. starts[b + 1]
//   index   [tiles]       their columns c
//
// Two bands are one block of 32 outputs, which the kernel multiplies together where both have a
// tile of the same column. Its lists therefore begin with the columns that both have, in the same
// order; those of one band alone follow. Sums of integers do not depend on the order.
//
//   kTiles     values [tiles][16 outputs][64 inputs], as tileloadd wants them: stride 64
//
//   kTileBits  masks   [tiles][16 outputs]   bit i: input i of that output is not 0
//              values  those that are not 0, by tile, output, input; then kOverread zero bytes
//              offsets [tiles + 1]           where a tile's bytes begin in values
#include "cpu/int8_panels/pack_tiles.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <vector>

namespace sparse_runtime::int8_panels {
namespace {

constexpr std::int64_t kRows = 16;
constexpr std::int64_t kColumns = 64;
constexpr std::int64_t kTileBytes = kRows * kColumns;
constexpr std::int64_t kOverread = 64;  // a row's bytes are loaded by whole vectors

std::int64_t band_count(std::int64_t n) {
  return (n + kRowBlock - 1) / kRowBlock * (kRowBlock / kRows);
}

std::int64_t column_count(std::int64_t k) {
  return (k + kColumns - 1) / kColumns;
}

struct Tile {
  std::int8_t values[kRows][kColumns];
};

Tile tile_at(const std::int8_t* w, std::int64_t n, std::int64_t k, std::int64_t band,
             std::int64_t column) {
  Tile tile{};
  const std::int64_t rows = std::min(kRows, n - band * kRows);
  const std::int64_t columns = std::min(kColumns, k - column * kColumns);
  for (std::int64_t row = 0; row < rows; ++row) {
    std::copy_n(w + (band * kRows + row) * k + column * kColumns, columns, tile.values[row]);
  }
  return tile;
}

std::uint64_t nonzero_bits(const std::int8_t (&row)[kColumns]) {
  std::uint64_t bits = 0;
  for (std::int64_t i = 0; i < kColumns; ++i) bits |= std::uint64_t{row[i] != 0} << i;
  return bits;
}

// Nonzeros of one tile, counted by rows of bytes: compilers vectorize it.
std::int64_t count_nonzeros(const Tile& tile) {
  std::int64_t count = 0;
  for (const auto& row : tile.values) {
    std::uint8_t in_row = 0;
    for (const std::int8_t value : row) in_row = static_cast<std::uint8_t>(in_row + (value != 0));
    count += in_row;
  }
  return count;
}

bool is_zero(const Tile& tile) {
  std::int8_t any = 0;
  for (const auto& row : tile.values) {
    for (const std::int8_t value : row) any = static_cast<std::int8_t>(any | value);
  }
  return any == 0;
}

void append(const Tile& tile, Weight& weight) {
  const std::int8_t* bytes = &tile.values[0][0];
  if (weight.layout == Layout::kTiles) {
    weight.values.insert(weight.values.end(), bytes, bytes + kTileBytes);
    return;
  }
  for (const auto& row : tile.values) weight.masks.push_back(nonzero_bits(row));
  std::copy_if(bytes, bytes + kTileBytes, std::back_inserter(weight.values),
               [](std::int8_t value) { return value != 0; });
  weight.offsets.push_back(static_cast<std::int64_t>(weight.values.size()));
}

// The columns of both bands of a block, each list beginning with those that both have.
struct BlockColumns {
  std::vector<std::uint16_t> of_band[2];
};

BlockColumns block_columns(const std::int8_t* w, std::int64_t n, std::int64_t k,
                           std::int64_t first_band) {
  BlockColumns columns;
  std::vector<std::uint16_t> alone[2];
  for (std::int64_t column = 0; column < column_count(k); ++column) {
    bool has[2];
    for (int i = 0; i < 2; ++i) has[i] = !is_zero(tile_at(w, n, k, first_band + i, column));
    for (int i = 0; i < 2; ++i) {
      auto& list = has[0] && has[1] ? columns.of_band[i] : alone[i];
      if (has[i]) list.push_back(static_cast<std::uint16_t>(column));
    }
  }
  for (int i = 0; i < 2; ++i) {
    columns.of_band[i].insert(columns.of_band[i].end(), alone[i].begin(), alone[i].end());
  }
  return columns;
}

void expand_tile(const Weight& weight, std::int64_t tile, Tile& out) {
  if (weight.layout == Layout::kTiles) {
    std::copy_n(weight.values.data() + tile * kTileBytes, kTileBytes, &out.values[0][0]);
    return;
  }
  const std::int8_t* next = weight.values.data() + weight.offsets[tile];
  for (std::int64_t row = 0; row < kRows; ++row) {
    const std::uint64_t bits = weight.masks[tile * kRows + row];
    for (std::int64_t i = 0; i < kColumns; ++i) {
      out.values[row][i] = (bits >> i & 1) != 0 ? *next++ : std::int8_t{0};
    }
  }
}

}  // namespace

void pack_tiles(const std::int8_t* w, Weight& weight) {
  const TileCounts counts = count_tiles(w, weight.n, weight.k);
  const bool bits = weight.layout == Layout::kTileBits;
  weight.values.reserve(bits ? counts.nonzeros + kOverread : counts.tiles * kTileBytes);
  weight.index.reserve(counts.tiles);
  weight.starts.reserve(band_count(weight.n) + 1);
  weight.starts.push_back(0);
  if (bits) {
    weight.masks.reserve(counts.tiles * kRows);
    weight.offsets.reserve(counts.tiles + 1);
    weight.offsets.push_back(0);
  }
  for (std::int64_t band = 0; band < band_count(weight.n); band += 2) {
    const BlockColumns columns = block_columns(w, weight.n, weight.k, band);
    for (int i = 0; i < 2; ++i) {
      for (const std::uint16_t column : columns.of_band[i]) {
        weight.index.push_back(column);
        append(tile_at(w, weight.n, weight.k, band + i, column), weight);
      }
      weight.starts.push_back(static_cast<std::int32_t>(weight.index.size()));
    }
  }
  if (bits) weight.values.insert(weight.values.end(), kOverread, std::int8_t{0});
}

void unpack_tiles(const Weight& weight, std::int8_t* w) {
  std::fill_n(w, weight.n * weight.k, std::int8_t{0});
  for (std::int64_t band = 0; band < band_count(weight.n); ++band) {
    const std::int64_t rows = std::min(kRows, weight.n - band * kRows);
    for (std::int32_t t = weight.starts[band]; t < weight.starts[band + 1]; ++t) {
      const std::int64_t column = weight.index[t] * kColumns;
      Tile tile;
      expand_tile(weight, t, tile);
      for (std::int64_t row = 0; row < rows; ++row) {
        std::copy_n(tile.values[row], std::min(kColumns, weight.k - column),
                    w + (band * kRows + row) * weight.k + column);
      }
    }
  }
}

TileCounts count_tiles(const std::int8_t* w, std::int64_t n, std::int64_t k) {
  TileCounts counts{};
  for (std::int64_t band = 0; band < band_count(n); ++band) {
    for (std::int64_t column = 0; column < column_count(k); ++column) {
      const std::int64_t nonzeros = count_nonzeros(tile_at(w, n, k, band, column));
      counts.tiles += nonzeros != 0;
      counts.nonzeros += nonzeros;
    }
  }
  const std::int64_t lists = (band_count(n) + 1) * 4 + counts.tiles * 2;  // starts, index
  counts.tiles_bytes = lists + counts.tiles * kTileBytes;
  counts.bits_bytes = lists + counts.tiles * (kRows * 8 + 8) + 8 + counts.nonzeros + kOverread;
  return counts;
}

}  // namespace sparse_runtime::int8_panels
