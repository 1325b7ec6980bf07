// Device layouts of a float weight. Rows are padded to kRowBlock with zeros, or with nothing where
// only nonzeros are held.
//
//   kDense32   float [group of rows][block of kInputBlock inputs][band of 6 rows][input][6]; the
//              last band of a group has the 4 or 2 rows that are left
//   kSparse32  per group of rows and block of inputs: the rows by falling number of nonzeros
//              (order), then four of them at a time [unit][4] their values, and in index where
//              their inputs begin, in bytes from the block's first. Shorter rows of a band are
//              filled up with zeros for an input that they read. Rows of nonzeros that are left
//              over at the end are bands of one, rows without any are none. starts[group * blocks +
//              block], one more at the end
//   kDense16   bf16 [band of 4 rows][pair of inputs][4][2]; the last pair is filled up with 0
//   kTiles16   1024 bytes a tile, [16 rows][32 inputs]; index: tile column; starts per 16 rows
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/panels.h"
#include "cpu/float_panels/float_panels.h"
#include "cpu/parts.h"

namespace sparse_runtime::float_panels {
namespace {

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileInputs = 32;
constexpr std::int64_t kInputBytes = panels::kSlots * std::int64_t{sizeof(float)};
static_assert(kInputBlock * kInputBytes <= 1 << 16);

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Nearest even; the weight is finite.
std::uint16_t to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float from_bf16(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// A matrix that reads as zero beyond its edges.
struct Matrix {
  const float* w;
  std::int64_t n;
  std::int64_t k;

  float at(std::int64_t row, std::int64_t input) const {
    return row < n && input < k ? w[row * k + input] : 0.0f;
  }
};

// All parts of kDense32 or kSparse32.
template <typename Visit>
void for_parts_of(Layout layout, std::int64_t rows, std::int64_t k, Visit visit) {
  for_parts(rows, row_group(layout, rows, k), k, kInputBlock, ceil_div(k, kInputBlock), visit);
}

template <typename Visit>
void for_dense32(std::int64_t rows, std::int64_t k, Visit visit) {
  for_parts_of(Layout::kDense32, rows, k, [&](const Part& part) {
    const std::int64_t end = part.row + part.rows;
    for (std::int64_t row = part.row; row < end; row += kTallBand) {
      const std::int64_t band_end = std::min(row + kTallBand, end);
      for (std::int64_t i = part.input; i < part.end; ++i) {
        for (std::int64_t r = row; r < band_end; ++r) visit(r, i);
      }
    }
  });
}

void pack_dense32(const Matrix& m, Weight& out) {
  for_dense32(padded_rows(m.n), m.k,
              [&](std::int64_t row, std::int64_t i) { out.floats.push_back(m.at(row, i)); });
}

// Bands of one part in `order`: visit(position of the first row, rows).
template <typename Visit>
void for_bands(const RowUnits* order, std::int64_t rows, Visit visit) {
  std::int64_t r = 0;
  for (; r + kBand <= rows && order[r + kBand - 1].units > 0; r += kBand) visit(r, kBand);
  for (; r < rows && order[r].units > 0; ++r) visit(r, 1);
}

// The rows of a part, those with the most nonzeros first.
std::vector<RowUnits> order_of(const Matrix& m, const Part& part) {
  std::vector<RowUnits> order;
  for (std::int64_t r = 0; r < part.rows; ++r) {
    std::int64_t units = 0;
    if (part.row + r < m.n) {
      const float* values = m.w + (part.row + r) * m.k;
      units = (part.end - part.input) -
              std::count(values + part.input, values + part.end, 0.0f);  // of either sign
    }
    order.push_back({static_cast<std::uint8_t>(r), static_cast<std::uint8_t>(units)});
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const RowUnits& a, const RowUnits& b) { return a.units > b.units; });
  return order;
}

void pack_sparse32(const Matrix& m, Weight& out) {
  for_parts_of(Layout::kSparse32, padded_rows(m.n), m.k, [&](const Part& part) {
    out.starts.push_back(static_cast<std::int32_t>(out.index.size()));
    const std::vector<RowUnits> order = order_of(m, part);
    out.order.insert(out.order.end(), order.begin(), order.end());
    for_bands(order.data(), part.rows, [&](std::int64_t band, std::int64_t rows) {
      std::int64_t next[kBand] = {};  // input of each row
      std::fill_n(next, kBand, part.input);
      std::int64_t last[kBand] = {};
      const RowUnits* rows_of_band = order.data() + band;
      for (int u = 0; u < rows_of_band->units; ++u) {
        for (std::int64_t r = 0; r < rows; ++r) {
          const std::int64_t row = part.row + rows_of_band[r].row;
          const bool held = u < rows_of_band[r].units;
          if (held) {
            while (m.at(row, next[r]) == 0.0f) ++next[r];
            last[r] = next[r]++;
          }
          out.floats.push_back(held ? m.at(row, last[r]) : 0.0f);
          out.index.push_back(static_cast<std::uint16_t>((last[r] - part.input) * kInputBytes));
        }
      }
    });
  });
  out.starts.push_back(static_cast<std::int32_t>(out.index.size()));
}

// put(row, input, value) of all units but those that fill up a band.
template <typename Put>
void unpack_sparse32(const Weight& weight, Put put) {
  const RowUnits* order = weight.order.data();
  std::size_t at = 0;
  for_parts_of(Layout::kSparse32, padded_rows(weight.n), weight.k, [&](const Part& part) {
    for_bands(order, part.rows, [&](std::int64_t band, std::int64_t rows) {
      for (int u = 0; u < order[band].units; ++u) {
        for (std::int64_t r = band; r < band + rows; ++r, ++at) {
          if (u >= order[r].units) continue;
          const std::int64_t input = part.input + weight.index[at] / kInputBytes;
          put(part.row + order[r].row, input, weight.floats[at]);
        }
      }
    });
    order += part.rows;
  });
}

void pack_dense16(const Matrix& m, Weight& out) {
  for (std::int64_t row = 0; row < padded_rows(m.n); row += kBand) {
    for (std::int64_t i = 0; i < m.k; i += 2) {
      for (std::int64_t r = row; r < row + kBand; ++r) {
        out.halves.push_back(to_bf16(m.at(r, i)));
        out.halves.push_back(to_bf16(m.at(r, i + 1)));
      }
    }
  }
}

bool tile_is_zero(const Matrix& m, std::int64_t row, std::int64_t input) {
  for (std::int64_t r = row; r < row + kTileRows; ++r) {
    for (std::int64_t i = input; i < input + kTileInputs; ++i) {
      if (m.at(r, i) != 0.0f) return false;
    }
  }
  return true;
}

void pack_tiles16(const Matrix& m, Weight& out) {
  out.starts.push_back(0);
  for (std::int64_t row = 0; row < padded_rows(m.n); row += kTileRows) {
    for (std::int64_t column = 0; column < ceil_div(m.k, kTileInputs); ++column) {
      const std::int64_t input = column * kTileInputs;
      if (tile_is_zero(m, row, input)) continue;
      out.index.push_back(static_cast<std::uint16_t>(column));
      for (std::int64_t i = 0; i < kTileRows * kTileInputs; ++i) {
        out.halves.push_back(to_bf16(m.at(row + i / kTileInputs, input + i % kTileInputs)));
      }
    }
    out.starts.push_back(static_cast<std::int32_t>(out.index.size()));
  }
}

}  // namespace

std::int64_t padded_rows(std::int64_t n) {
  return ceil_div(n, kRowBlock) * kRowBlock;
}

std::int64_t sparse32_units(const float* w, std::int64_t n, std::int64_t k) {
  std::int64_t units = 0;
  for_parts_of(Layout::kSparse32, padded_rows(n), k, [&](const Part& part) {
    const std::vector<RowUnits> order = order_of({w, n, k}, part);
    for_bands(order.data(), part.rows, [&](std::int64_t band, std::int64_t rows) {
      units += rows * order[static_cast<std::size_t>(band)].units;
    });
  });
  return units;
}

std::unique_ptr<Weight> pack(const float* w, std::int64_t n, std::int64_t k, Layout layout) {
  auto out = std::make_unique<Weight>();
  out->layout = layout;
  out->n = n;
  out->k = k;
  const Matrix m{w, n, k};
  switch (layout) {
    case Layout::kDense32:
      pack_dense32(m, *out);
      break;
    case Layout::kSparse32:
      pack_sparse32(m, *out);
      break;
    case Layout::kDense16:
      pack_dense16(m, *out);
      break;
    case Layout::kTiles16:
      pack_tiles16(m, *out);
      break;
  }
  out->floats.shrink_to_fit();
  out->halves.shrink_to_fit();
  out->index.shrink_to_fit();
  out->order.shrink_to_fit();
  return out;
}

void unpack(const Weight& weight, float* w) {
  const std::int64_t n = weight.n, k = weight.k;
  std::memset(w, 0, static_cast<std::size_t>(n * k) * sizeof(float));
  const auto put = [&](std::int64_t row, std::int64_t input, float value) {
    if (row < n && input < k) w[row * k + input] = value;
  };
  const std::int64_t pairs = ceil_div(k, 2);
  switch (weight.layout) {
    case Layout::kDense32: {
      const float* value = weight.floats.data();
      for_dense32(padded_rows(n), k,
                  [&](std::int64_t row, std::int64_t i) { put(row, i, *value++); });
      break;
    }
    case Layout::kSparse32:
      unpack_sparse32(weight, put);
      break;
    case Layout::kDense16:
      for (std::int64_t i = 0; i < padded_rows(n) * pairs * 2; ++i) {
        put(i / (2 * kBand * pairs) * kBand + i / 2 % kBand, i / (2 * kBand) % pairs * 2 + i % 2,
            from_bf16(weight.halves[i]));
      }
      break;
    case Layout::kTiles16:
      for (std::size_t strip = 0; strip + 1 < weight.starts.size(); ++strip) {
        for (std::int64_t t = weight.starts[strip]; t < weight.starts[strip + 1]; ++t) {
          for (std::int64_t i = 0; i < kTileRows * kTileInputs; ++i) {
            put(static_cast<std::int64_t>(strip) * kTileRows + i / kTileInputs,
                weight.index[t] * kTileInputs + i % kTileInputs,
                from_bf16(weight.halves[t * kTileRows * kTileInputs + i]));
          }
        }
      }
      break;
  }
}

WeightView Weight::view() const {
  return {layout,        padded_rows(n), k,           floats.data(), halves.data(),
          starts.data(), index.data(),   order.data()};
}

std::int64_t Weight::bytes() const {
  return static_cast<std::int64_t>(
      floats.size() * sizeof(float) + halves.size() * sizeof(std::uint16_t) +
      starts.size() * sizeof(std::int32_t) + index.size() * sizeof(std::uint16_t) +
      order.size() * sizeof(RowUnits));
}

}  // namespace sparse_runtime::float_panels
