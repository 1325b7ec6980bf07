// Device layouts of a float weight. Rows are padded to kRowBlock with zeros, or with nothing where
// only nonzeros are held.
//
//   kDense32   float [band of 4 rows][input][4]
//   kSparse32  per block of kInputBlock inputs, per row: its nonzero values, and their inputs in
//              index; starts[block * padded rows + row], one more at the end
//   kDense16   bf16 [band of 4 rows][pair of inputs][4][2]; the last pair is filled up with 0
//   kTiles16   1024 bytes a tile, [16 rows][32 inputs]; index: tile column; starts per 16 rows
#include <cstring>

#include "cpu/float_panels/float_panels.h"

namespace sparse_runtime::float_panels {
namespace {

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileInputs = 32;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

std::int64_t padded_rows(std::int64_t n) {
  return ceil_div(n, kRowBlock) * kRowBlock;
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

void pack_dense32(const Matrix& m, Weight& out) {
  for (std::int64_t row = 0; row < padded_rows(m.n); row += kBand) {
    for (std::int64_t i = 0; i < m.k; ++i) {
      for (std::int64_t r = row; r < row + kBand; ++r) out.floats.push_back(m.at(r, i));
    }
  }
}

void pack_sparse32(const Matrix& m, Weight& out) {
  out.starts.push_back(0);
  for (std::int64_t block = 0; block < m.k; block += kInputBlock) {
    for (std::int64_t row = 0; row < padded_rows(m.n); ++row) {
      for (std::int64_t i = block; i < block + kInputBlock && i < m.k; ++i) {
        if (m.at(row, i) == 0.0f) continue;
        out.floats.push_back(m.at(row, i));
        out.index.push_back(static_cast<std::uint16_t>(i));
      }
      out.starts.push_back(static_cast<std::int32_t>(out.index.size()));
    }
  }
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
  return out;
}

void unpack(const Weight& weight, float* w) {
  const std::int64_t n = weight.n, k = weight.k, padded = padded_rows(n);
  std::memset(w, 0, static_cast<std::size_t>(n * k) * sizeof(float));
  const auto put = [&](std::int64_t row, std::int64_t input, float value) {
    if (row < n && input < k) w[row * k + input] = value;
  };
  const std::int64_t pairs = ceil_div(k, 2);
  switch (weight.layout) {
    case Layout::kDense32:
      for (std::int64_t i = 0; i < padded * k; ++i) {
        put(i / (kBand * k) * kBand + i % kBand, i / kBand % k, weight.floats[i]);
      }
      break;
    case Layout::kSparse32:
      for (std::size_t s = 0; s + 1 < weight.starts.size(); ++s) {
        for (std::int64_t u = weight.starts[s]; u < weight.starts[s + 1]; ++u) {
          put(static_cast<std::int64_t>(s) % padded, weight.index[u], weight.floats[u]);
        }
      }
      break;
    case Layout::kDense16:
      for (std::int64_t i = 0; i < padded * pairs * 2; ++i) {
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
  return {layout, padded_rows(n), k, floats.data(), halves.data(), starts.data(), index.data()};
}

std::int64_t Weight::bytes() const {
  return static_cast<std::int64_t>(
      floats.size() * sizeof(float) + halves.size() * sizeof(std::uint16_t) +
      starts.size() * sizeof(std::int32_t) + index.size() * sizeof(std::uint16_t));
}

}  // namespace sparse_runtime::float_panels
