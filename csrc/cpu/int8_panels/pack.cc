// Device layouts of an int8 weight. Rows are padded to kRowBlock with rows that have no units (in
// the dense layout: zeros). A unit is what the inner loop multiplies at a time:
//
// clang-format off
//   kDense, kBand4Grouped  16 bytes: row 4b, inputs 4g .. 4g+3; row 4b+1; row 4b+2; row 4b+3
//                          index: g (kDense has none: unit u is group u)
//   kBand4Gathered         16 bytes: row 4b, inputs i0 i1 i2 i3; row 4b+1; row 4b+2; row 4b+3
//                          index: i0 i1 i2 i3
//   kBand1Grouped          4 bytes: inputs 4g .. 4g+3
//                          index: g
//   kBand1Gathered         4 bytes: inputs i0 i1 i2 i3
//                          index: i0 i1 i2 i3
//   kTiles                 1024 bytes: [16 rows][64 inputs]
//                          index: column of tiles
//   kTileBits              16 masks of 64 bits, one a row, bit i: input i of the tile is not 0;
//                          values are its nonzero bytes, row after row
//                          index: column of tiles
// clang-format on
//
// starts[b] .. starts[b + 1] are the units of band b (bands of 4 rows, 1 row, or 16 rows of tiles).
// Gathered units are filled up with input 0 and weight 0.
#include <algorithm>
#include <cstring>

#include "cpu/int8_panels/int8_panels.h"

namespace sparse_runtime::int8_panels {
namespace {

constexpr std::int64_t kGroup = 4;
constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileInputs = 64;
// Expanding a row of a tile reads this many bytes, whatever of them it uses.
constexpr std::size_t kReadAhead = 64;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

std::int64_t padded_rows(std::int64_t n) {
  return ceil_div(n, kRowBlock) * kRowBlock;
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

void pack_grouped(const Matrix& m, std::int64_t band, bool every, Weight& out) {
  const std::int64_t groups = ceil_div(m.k, kGroup);
  out.starts.push_back(0);
  for (std::int64_t row = 0; row < padded_rows(m.n); row += band) {
    for (std::int64_t g = 0; g < groups; ++g) {
      if (!every && !m.any(row, band, g * kGroup, kGroup)) continue;
      out.index.push_back(static_cast<std::uint16_t>(g));
      for (std::int64_t i = 0; i < band * kGroup; ++i) {
        out.values.push_back(m.at(row + i / kGroup, g * kGroup + i % kGroup));
      }
    }
    out.starts.push_back(static_cast<std::int32_t>(out.index.size()));
  }
}

void pack_gathered(const Matrix& m, std::int64_t band, Weight& out) {
  out.starts.push_back(0);
  for (std::int64_t row = 0; row < padded_rows(m.n); row += band) {
    const std::size_t first = out.index.size();
    for (std::int64_t i = 0; i < m.k; ++i) {
      if (m.any(row, band, i, 1)) out.index.push_back(static_cast<std::uint16_t>(i));
    }
    const std::size_t used = out.index.size();
    while ((out.index.size() - first) % kGroup != 0) out.index.push_back(0);
    for (std::size_t unit = first; unit < out.index.size(); unit += kGroup) {
      for (std::int64_t r = row; r < row + band; ++r) {
        for (std::size_t j = unit; j < unit + kGroup; ++j) {
          out.values.push_back(j < used ? m.at(r, out.index[j]) : std::int8_t{0});
        }
      }
    }
    out.starts.push_back(static_cast<std::int32_t>(out.index.size() / kGroup));
  }
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

std::int64_t rows_of_band(Layout layout) {
  switch (layout) {
    case Layout::kBand1Grouped:
    case Layout::kBand1Gathered:
      return 1;
    case Layout::kTiles:
    case Layout::kTileBits:
      return kTileRows;
    default:
      return 4;
  }
}

}  // namespace

std::unique_ptr<Weight> pack(const std::int8_t* w, std::int64_t n, std::int64_t k, Layout layout) {
  auto out = std::make_unique<Weight>();
  out->layout = layout;
  out->n = n;
  out->k = k;
  const Matrix m{w, n, k};
  switch (layout) {
    case Layout::kDense:
    case Layout::kBand4Grouped:
      pack_grouped(m, 4, layout == Layout::kDense, *out);
      break;
    case Layout::kBand1Grouped:
      pack_grouped(m, 1, false, *out);
      break;
    case Layout::kBand4Gathered:
      pack_gathered(m, 4, *out);
      break;
    case Layout::kBand1Gathered:
      pack_gathered(m, 1, *out);
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
  return out;
}

void unpack(const Weight& weight, std::int8_t* w) {
  std::memset(w, 0, static_cast<std::size_t>(weight.n * weight.k));
  const auto put = [&](std::int64_t row, std::int64_t input, std::int8_t value) {
    if (row < weight.n && input < weight.k && value != 0) w[row * weight.k + input] = value;
  };
  const std::int64_t band = rows_of_band(weight.layout);
  const bool gathered = reads_plain(weight.layout);
  const bool bits = weight.layout == Layout::kTileBits;
  const std::int64_t width = band == kTileRows ? kTileInputs : kGroup;
  for (std::size_t b = 0; b + 1 < weight.starts.size(); ++b) {
    for (std::int64_t u = weight.starts[b]; u < weight.starts[b + 1]; ++u) {
      const std::int8_t* values =
          weight.values.data() + (bits ? weight.offsets[u] : u * band * width);
      for (std::int64_t i = 0; i < band * width; ++i) {
        const std::int64_t row = static_cast<std::int64_t>(b) * band + i / width;
        if (gathered) {
          put(row, weight.index[u * kGroup + i % width], values[i]);
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
  return {layout,       padded_rows(n), k, values.data(), starts.data(), index.data(),
          masks.data(), offsets.data()};
}

std::int64_t Weight::bytes() const {
  return static_cast<std::int64_t>(
      values.size() + starts.size() * sizeof(std::int32_t) + index.size() * sizeof(std::uint16_t) +
      masks.size() * sizeof(std::uint64_t) + offsets.size() * sizeof(std::int64_t) +
      (row_sums.size() + float_sums.size()) * sizeof(float));
}

Cost count(const std::int8_t* w, std::int64_t n, std::int64_t k) {
  const Matrix m{w, n, k};
  Cost cost = {};
  const auto of = [&cost](Layout layout) -> std::int64_t& {
    return cost.units[static_cast<int>(layout)];
  };
  const std::int64_t groups = ceil_div(k, kGroup);
  const std::int64_t columns = ceil_div(k, kTileInputs);
  of(Layout::kDense) = padded_rows(n) / 4 * groups;
  std::vector<std::uint8_t> band(static_cast<std::size_t>(columns * kTileInputs));
  std::vector<std::uint8_t> strip(static_cast<std::size_t>(columns));
  for (std::int64_t row = 0; row < n; row += kTileRows) {
    std::fill(strip.begin(), strip.end(), std::uint8_t{0});
    for (std::int64_t first = row; first < row + kTileRows && first < n; first += 4) {
      std::fill(band.begin(), band.end(), std::uint8_t{0});
      for (std::int64_t r = first; r < first + 4 && r < n; ++r) {
        const std::int8_t* values = w + r * k;
        std::int64_t own = 0, own_groups = 0;
        for (std::int64_t i = 0; i < k; ++i) {
          band[static_cast<std::size_t>(i)] |= static_cast<std::uint8_t>(values[i] != 0);
          own += values[i] != 0;
        }
        for (std::int64_t g = 0; g < k / kGroup; ++g) {
          std::int32_t word;
          std::memcpy(&word, values + g * kGroup, sizeof(word));
          own_groups += word != 0;
        }
        if (k % kGroup != 0) own_groups += m.any(r, 1, k / kGroup * kGroup, kGroup);
        cost.nonzeros += own;
        of(Layout::kBand1Gathered) += ceil_div(own, kGroup);
        of(Layout::kBand1Grouped) += own_groups;
      }
      std::int64_t shared = 0;
      for (std::int64_t g = 0; g < columns * kTileInputs / kGroup; ++g) {
        std::uint32_t word;
        std::memcpy(&word, band.data() + g * kGroup, sizeof(word));
        of(Layout::kBand4Grouped) += word != 0;
        shared += __builtin_popcount(word);
        if (word != 0) strip[static_cast<std::size_t>(g / 16)] = 1;
      }
      of(Layout::kBand4Gathered) += ceil_div(shared, kGroup);
    }
    for (const std::uint8_t used : strip) of(Layout::kTiles) += used;
  }
  of(Layout::kTileBits) = of(Layout::kTiles);
  return cost;
}

}  // namespace sparse_runtime::int8_panels
