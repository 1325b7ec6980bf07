// Device layouts of an int8 weight. Rows are padded to kRowBlock with rows that have no units (in
// the dense layout: zeros). A unit is what the inner loop multiplies at a time:
//
// clang-format off
//   kDense, kBand4Grouped  16 bytes: row 4b, inputs 4g .. 4g+3; row 4b+1; row 4b+2; row 4b+3
//                          index: g (kDense has none: unit u is group u)
//   kBand4Gathered         16 bytes: row 4b, inputs i0 i1 i2 i3; row 4b+1; row 4b+2; row 4b+3
//                          index: i0 i1 i2 i3
//   kBand1Grouped          4 bytes: inputs 4g .. 4g+3 of a row
//                          index: 256 * g, g counted from the block's first
//   kBand1Gathered         4 bytes: inputs i0 i1 i2 i3 of a row
//                          index: 64 * i0, 64 * i1, 64 * i2, 64 * i3, counted the same way
//   kTiles                 1024 bytes: [16 rows][64 inputs]
//                          index: column of tiles
//   kTileBits              16 masks of 64 bits, one a row, bit i: input i of the tile is not 0;
//                          values are its nonzero bytes, row after row
//                          index: column of tiles
// clang-format on
//
// starts[b] .. starts[b + 1] are the units of band b (bands of 4 rows, or 16 rows of tiles).
// Gathered units are filled up with input 0 and weight 0.
//
// The band1 layouts are cut into parts, group of rows by group, and block of inputs by block within
// (row_group, kInputBlock); starts has theirs. Of a part, the rows by falling number of units
// (order), then four of them at a time:
//
//   values  [unit][4 rows][4 bytes]
//   index   [unit][4 rows], gathered [unit][4 rows][4]: bytes from the block's first activations
//
// with as many units as the first of the four has. The others are filled up with weights of 0 at
// offset 0.
#include <algorithm>
#include <cstring>

#include "core/panels.h"
#include "cpu/int8_panels/int8_panels.h"
#include "cpu/parts.h"

namespace sparse_runtime::int8_panels {
namespace {

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileInputs = 64;
// Expanding a row of a tile reads this many bytes, whatever of them it uses.
constexpr std::size_t kReadAhead = 64;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// A matrix that reads as zero beyond its edges.
struct Matrix {
  const std::int8_t* w;
  std::int64_t n;
  std::int64_t k;

  std::int8_t at(std::int64_t row, std::int64_t input) const {
    return row < n && input < k ? w[row * k + input] : std::int8_t{0};
  }
  bool any(std::int64_t row, std::int64_t rows, std::int64_t input, std::int64_t inputs) const {
    for (std::int64_t r = row; r < row + rows && r < n; ++r) {
      for (std::int64_t i = input; i < input + inputs && i < k; ++i) {
        if (w[r * k + i] != 0) return true;
      }
    }
    return false;
  }
};

void pack_band4_grouped(const Matrix& m, bool every, Weight& out) {
  const std::int64_t groups = ceil_div(m.k, kUnit);
  out.starts.push_back(0);
  for (std::int64_t row = 0; row < padded_rows(m.n); row += kBand) {
    for (std::int64_t g = 0; g < groups; ++g) {
      if (!every && !m.any(row, kBand, g * kUnit, kUnit)) continue;
      out.index.push_back(static_cast<std::uint16_t>(g));
      for (std::int64_t i = 0; i < kBand * kUnit; ++i) {
        out.values.push_back(m.at(row + i / kUnit, g * kUnit + i % kUnit));
      }
    }
    out.starts.push_back(static_cast<std::int32_t>(out.index.size()));
  }
}

void pack_band4_gathered(const Matrix& m, Weight& out) {
  out.starts.push_back(0);
  for (std::int64_t row = 0; row < padded_rows(m.n); row += kBand) {
    const std::size_t first = out.index.size();
    for (std::int64_t i = 0; i < m.k; ++i) {
      if (m.any(row, kBand, i, 1)) out.index.push_back(static_cast<std::uint16_t>(i));
    }
    const std::size_t used = out.index.size();
    while ((out.index.size() - first) % kUnit != 0) out.index.push_back(0);
    for (std::size_t unit = first; unit < out.index.size(); unit += kUnit) {
      for (std::int64_t r = row; r < row + kBand; ++r) {
        for (std::size_t j = unit; j < unit + kUnit; ++j) {
          out.values.push_back(j < used ? m.at(r, out.index[j]) : std::int8_t{0});
        }
      }
    }
    out.starts.push_back(static_cast<std::int32_t>(out.index.size() / kUnit));
  }
}

// All parts of a band1 layout. No inputs at all are one empty block.
template <typename Visit>
void for_parts_of(Layout layout, std::int64_t n, std::int64_t k, Visit visit) {
  const std::int64_t rows = padded_rows(n);
  for_parts(rows, row_group(layout, rows, k), k, kInputBlock, input_blocks(k), visit);
}

std::int64_t units_of(const Matrix& m, const Part& part, std::int64_t row, bool gathered) {
  if (row >= m.n) return 0;
  const std::int8_t* values = m.w + row * m.k;
  if (gathered) {
    const std::int64_t zeros = std::count(values + part.input, values + part.end, 0);
    return ceil_div(part.end - part.input - zeros, kUnit);
  }
  std::int64_t units = 0, input = part.input;
  for (; input + kUnit <= part.end; input += kUnit) {
    std::int32_t word;
    std::memcpy(&word, values + input, sizeof(word));
    units += word != 0;
  }
  return units + (m.any(row, 1, input, part.end - input) ? 1 : 0);
}

// The rows of a part, those with the most units first.
std::vector<RowUnits> order_of(const Matrix& m, const Part& part, bool gathered) {
  std::vector<RowUnits> order;
  for (std::int64_t r = 0; r < part.rows; ++r) {
    order.push_back({static_cast<std::uint8_t>(r),
                     static_cast<std::uint8_t>(units_of(m, part, part.row + r, gathered))});
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const RowUnits& a, const RowUnits& b) { return a.units > b.units; });
  return order;
}

// One row of four: its units are kBand units apart.
void put_row(const Matrix& m, const Part& part, std::int64_t row, bool gathered,
             std::int8_t* values, std::uint16_t* index) {
  const std::int64_t width = gathered ? 1 : kUnit;  // inputs that one offset is for
  std::int64_t held = 0;
  for (std::int64_t input = part.input; input < part.end; input += width) {
    if (!m.any(row, 1, input, width)) continue;
    const std::int64_t unit = held / kUnit * kBand;
    index[unit * (kUnit / width) + held % kUnit] =
        static_cast<std::uint16_t>((input - part.input) * panels::kSlots);
    for (std::int64_t i = input; i < input + width; ++i, ++held) {
      values[unit * kUnit + held % kUnit] = m.at(row, i);
    }
  }
}

void pack_band1(const Matrix& m, Weight& out) {
  const bool gathered = reads_plain(out.layout);
  const std::size_t offsets = gathered ? kUnit : 1;  // of a unit
  for_parts_of(out.layout, m.n, m.k, [&](const Part& part) {
    std::size_t unit = out.values.size() / kUnit;
    out.starts.push_back(static_cast<std::int32_t>(unit));
    const std::vector<RowUnits> order = order_of(m, part, gathered);
    out.order.insert(out.order.end(), order.begin(), order.end());
    for (std::int64_t r = 0; r < part.rows; r += kBand) {
      const RowUnits* four = order.data() + r;
      if (four->units == 0) break;  // nor has any row after these
      const std::size_t end = unit + kBand * four->units;
      out.values.resize(end * kUnit, 0);
      out.index.resize(end * offsets, 0);
      for (std::int64_t i = 0; i < kBand; ++i) {
        put_row(m, part, part.row + four[i].row, gathered, out.values.data() + (unit + i) * kUnit,
                out.index.data() + (unit + i) * offsets);
      }
      unit = end;
    }
  });
  out.starts.push_back(static_cast<std::int32_t>(out.values.size() / kUnit));
}

// put(row, input, value) of all units, and of the zeros that fill them up.
template <typename Put>
void unpack_band1(const Weight& weight, Put put) {
  const bool gathered = reads_plain(weight.layout);
  const RowUnits* order = weight.order.data();
  const std::int8_t* values = weight.values.data();
  const std::uint16_t* index = weight.index.data();
  for_parts_of(weight.layout, weight.n, weight.k, [&](const Part& part) {
    for (std::int64_t r = 0; r < part.rows; r += kBand, order += kBand) {
      for (std::int64_t u = 0; u < order->units * kBand; ++u) {
        for (std::int64_t i = 0; i < kUnit; ++i) {
          const std::int64_t input = index[gathered ? i : 0] / panels::kSlots + (gathered ? 0 : i);
          put(part.row + order[u % kBand].row, part.input + input, values[i]);
        }
        values += kUnit;
        index += gathered ? kUnit : 1;
      }
    }
  });
}

std::int64_t band1_units(const Matrix& m, Layout layout) {
  std::int64_t units = 0;
  for_parts_of(layout, m.n, m.k, [&](const Part& part) {
    const std::vector<RowUnits> order = order_of(m, part, reads_plain(layout));
    for (std::int64_t r = 0; r < part.rows; r += kBand) {
      units += kBand * order[static_cast<std::size_t>(r)].units;
    }
  });
  return units;
}

void pack_tiles(const Matrix& m, bool bits, Weight& out) {
  out.starts.push_back(0);
  for (std::int64_t row = 0; row < padded_rows(m.n); row += kTileRows) {
    for (std::int64_t column = 0; column < ceil_div(m.k, kTileInputs); ++column) {
      const std::int64_t input = column * kTileInputs;
      if (!m.any(row, kTileRows, input, kTileInputs)) continue;
      out.index.push_back(static_cast<std::uint16_t>(column));
      if (bits) out.offsets.push_back(static_cast<std::int64_t>(out.values.size()));
      for (std::int64_t r = row; r < row + kTileRows; ++r) {
        std::uint64_t mask = 0;
        for (std::int64_t i = 0; i < kTileInputs; ++i) {
          const std::int8_t value = m.at(r, input + i);
          if (value != 0) mask |= std::uint64_t{1} << i;
          if (!bits || value != 0) out.values.push_back(value);
        }
        if (bits) out.masks.push_back(mask);
      }
    }
    out.starts.push_back(static_cast<std::int32_t>(out.index.size()));
  }
  if (bits) out.values.resize(out.values.size() + kReadAhead, 0);
}

void add_row_sums(const Matrix& m, Weight& out) {
  constexpr std::int64_t kFloatIntegers = 1 << 24;
  out.row_sums.assign(static_cast<std::size_t>(padded_rows(m.n)), 0);
  std::int64_t most = 0;
  for (std::int64_t r = 0; r < m.n; ++r) {
    std::int32_t sum = 0, size = 0;
    for (std::int64_t i = 0; i < m.k; ++i) {
      sum += m.w[r * m.k + i];
      size += m.w[r * m.k + i] < 0 ? -m.w[r * m.k + i] : m.w[r * m.k + i];
    }
    out.row_sums[static_cast<std::size_t>(r)] = sum;
    most = std::max<std::int64_t>(most, size);
  }
  if (255 * most < kFloatIntegers) out.float_sums.assign(out.row_sums.begin(), out.row_sums.end());
}

}  // namespace

std::int64_t padded_rows(std::int64_t n) {
  return ceil_div(n, kRowBlock) * kRowBlock;
}

std::unique_ptr<Weight> pack(const std::int8_t* w, std::int64_t n, std::int64_t k, Layout layout) {
  auto out = std::make_unique<Weight>();
  out->layout = layout;
  out->n = n;
  out->k = k;
  const Matrix m{w, n, k};
  switch (layout) {
    case Layout::kDense:
    case Layout::kBand4Grouped:
      pack_band4_grouped(m, layout == Layout::kDense, *out);
      break;
    case Layout::kBand4Gathered:
      pack_band4_gathered(m, *out);
      break;
    case Layout::kBand1Grouped:
    case Layout::kBand1Gathered:
      pack_band1(m, *out);
      break;
    case Layout::kTiles:
    case Layout::kTileBits:
      pack_tiles(m, layout == Layout::kTileBits, *out);
      break;
  }
  if (layout == Layout::kDense) out->index.clear();
  add_row_sums(m, *out);
  out->values.shrink_to_fit();
  out->index.shrink_to_fit();
  out->order.shrink_to_fit();
  return out;
}

void unpack(const Weight& weight, std::int8_t* w) {
  std::memset(w, 0, static_cast<std::size_t>(weight.n * weight.k));
  const auto put = [&](std::int64_t row, std::int64_t input, std::int8_t value) {
    if (row < weight.n && input < weight.k && value != 0) w[row * weight.k + input] = value;
  };
  if (weight.layout == Layout::kBand1Grouped || weight.layout == Layout::kBand1Gathered) {
    return unpack_band1(weight, put);
  }
  const bool tiled = weight.layout == Layout::kTiles || weight.layout == Layout::kTileBits;
  const std::int64_t band = tiled ? kTileRows : kBand;
  const bool gathered = reads_plain(weight.layout);
  const bool bits = weight.layout == Layout::kTileBits;
  const std::int64_t width = tiled ? kTileInputs : kUnit;
  for (std::size_t b = 0; b + 1 < weight.starts.size(); ++b) {
    for (std::int64_t u = weight.starts[b]; u < weight.starts[b + 1]; ++u) {
      const std::int8_t* values =
          weight.values.data() + (bits ? weight.offsets[u] : u * band * width);
      for (std::int64_t i = 0; i < band * width; ++i) {
        const std::int64_t row = static_cast<std::int64_t>(b) * band + i / width;
        if (gathered) {
          put(row, weight.index[u * kUnit + i % width], values[i]);
          continue;
        }
        const std::int64_t unit =
            weight.layout == Layout::kDense ? u - weight.starts[b] : weight.index[u];
        const bool kept =
            !bits || (weight.masks[u * kTileRows + i / width] >> (i % width) & 1) != 0;
        if (kept) put(row, unit * width + i % width, bits ? *values++ : values[i]);
      }
    }
  }
}

WeightView Weight::view() const {
  return {layout,       padded_rows(n), k,           values.data(), starts.data(), index.data(),
          masks.data(), offsets.data(), order.data()};
}

std::int64_t Weight::bytes() const {
  return static_cast<std::int64_t>(
      values.size() + starts.size() * sizeof(std::int32_t) + index.size() * sizeof(std::uint16_t) +
      masks.size() * sizeof(std::uint64_t) + offsets.size() * sizeof(std::int64_t) +
      order.size() * sizeof(RowUnits) + (row_sums.size() + float_sums.size()) * sizeof(float));
}

Cost count(const std::int8_t* w, std::int64_t n, std::int64_t k) {
  const Matrix m{w, n, k};
  Cost cost = {};
  const auto of = [&cost](Layout layout) -> std::int64_t& {
    return cost.units[static_cast<int>(layout)];
  };
  const std::int64_t groups = ceil_div(k, kUnit);
  const std::int64_t columns = ceil_div(k, kTileInputs);
  of(Layout::kDense) = padded_rows(n) / kBand * groups;
  std::vector<std::uint8_t> band(static_cast<std::size_t>(columns * kTileInputs));
  std::vector<std::uint8_t> strip(static_cast<std::size_t>(columns));
  for (std::int64_t row = 0; row < n; row += kTileRows) {
    std::fill(strip.begin(), strip.end(), std::uint8_t{0});
    for (std::int64_t first = row; first < row + kTileRows && first < n; first += kBand) {
      std::fill(band.begin(), band.end(), std::uint8_t{0});
      for (std::int64_t r = first; r < first + kBand && r < n; ++r) {
        const std::int8_t* values = w + r * k;
        for (std::int64_t i = 0; i < k; ++i) {
          band[static_cast<std::size_t>(i)] |= static_cast<std::uint8_t>(values[i] != 0);
          cost.nonzeros += values[i] != 0;
        }
      }
      std::int64_t shared = 0;
      for (std::int64_t g = 0; g < columns * kTileInputs / kUnit; ++g) {
        std::uint32_t word;
        std::memcpy(&word, band.data() + g * kUnit, sizeof(word));
        of(Layout::kBand4Grouped) += word != 0;
        shared += __builtin_popcount(word);
        if (word != 0) strip[static_cast<std::size_t>(g / 16)] = 1;
      }
      of(Layout::kBand4Gathered) += ceil_div(shared, kUnit);
    }
    for (const std::uint8_t used : strip) of(Layout::kTiles) += used;
  }
  of(Layout::kTileBits) = of(Layout::kTiles);
  of(Layout::kBand1Grouped) = band1_units(m, Layout::kBand1Grouped);
  of(Layout::kBand1Gathered) = band1_units(m, Layout::kBand1Gathered);
  return cost;
}

}  // namespace sparse_runtime::int8_panels
