#include "cpu/encoder/ending.h"

#include <algorithm>
#include <cmath>

namespace sparse_runtime::encoder {
namespace {

constexpr int kSlots = panels::kSlots;

// Brings the minima and maxima of several parts together. A NaN stays: nothing compares less or
// greater than it.
void merge_ranges(const float* parts, std::int64_t count, float* low, float* high) {
  std::copy_n(parts, kSlots, low);
  std::copy_n(parts + kSlots, kSlots, high);
  for (std::int64_t part = 1; part < count; ++part) {
    const float* other_low = parts + part * 2 * kSlots;
    const float* other_high = other_low + kSlots;
    for (int slot = 0; slot < kSlots; ++slot) {
      const float l = other_low[slot], h = other_high[slot];
      low[slot] = l < low[slot] || l != l ? l : low[slot];
      high[slot] = h > high[slot] || h != h ? h : high[slot];
    }
  }
}

// Means and squared deviations of several parts brought together (Chan, Golub and LeVeque 1983).
void merge_moments(const float* parts, std::int64_t count, std::int64_t part_rows,
                   std::int64_t rows, float* mean, float* deviation) {
  std::copy_n(parts, kSlots, mean);
  std::copy_n(parts + kSlots, kSlots, deviation);
  std::int64_t done = std::min(part_rows, rows);
  for (std::int64_t part = 1; part < count; ++part) {
    const float* other_mean = parts + part * 2 * kSlots;
    const float* other_deviation = other_mean + kSlots;
    const std::int64_t own = std::min(part_rows, rows - done);
    const auto share = static_cast<float>(own) / static_cast<float>(done + own);
    const float weight = static_cast<float>(done) * share;
    for (int slot = 0; slot < kSlots; ++slot) {
      const float d = other_mean[slot] - mean[slot];
      mean[slot] += d * share;
      deviation[slot] += other_deviation[slot] + d * d * weight;
    }
    done += own;
  }
}

}  // namespace

bool Ending::quantizes() const {
  return std::any_of(shapes.begin(), shapes.end(),
                     [](const Shape& s) { return s.form.kind == Form::Kind::kBytes; });
}

Ending::Rows Ending::rows_of(std::int64_t panel, std::int64_t part, float* x) const {
  const std::int64_t first = part * part_rows;
  return {x + first * kSlots, first, std::min(part_rows, features - first),
          panel + 1 == panels ? last_vectors : panels::kVectors};
}

void Ending::moments_of(std::int64_t panel, std::int64_t part, float* x) const {
  const Rows rows = rows_of(panel, part, x);
  float* out = statistics_of(moments, panel, part);
  ops->moments({rows.x, rows.count, rows.vectors, out, out + kSlots});
}

void Ending::range_of(std::int64_t panel, std::int64_t part, float* x) const {
  const Rows rows = rows_of(panel, part, x);
  float* out = statistics_of(ranges, panel, part);
  ops->range(rows.x, rows.count, rows.vectors, out, out + kSlots);
}

void Ending::normalize(std::int64_t panel, std::int64_t part, float* x) const {
  const Rows rows = rows_of(panel, part, x);
  alignas(64) float mean[kSlots];
  alignas(64) float inverse[kSlots];
  merge_moments(statistics_of(moments, panel, 0), parts, part_rows, features, mean, inverse);
  for (float& value : inverse) {
    value = 1.0f / std::sqrt(value / static_cast<float>(features) + norm->eps);
  }
  float* out = statistics_of(ranges, panel, part);
  ops->normalize({rows.x, rows.count, rows.vectors, mean, inverse, norm->weight.data() + rows.first,
                  norm->bias.data() + rows.first, out, out + kSlots});
}

void Ending::convert(std::int64_t panel, std::int64_t part, float* x) const {
  const Rows rows = rows_of(panel, part, x);
  alignas(64) float low[kSlots];
  alignas(64) float high[kSlots];
  if (quantizes()) merge_ranges(statistics_of(ranges, panel, 0), parts, low, high);
  for (const Shape& shape : shapes) {
    if (shape.form.kind == Form::Kind::kPairs) {
      ops->to_pairs(rows.x, rows.count, rows.vectors,
                    static_cast<std::uint16_t*>(shape.data) +
                        panel * panels::bf16_in_panel(features) + rows.first * kSlots);
      continue;
    }
    // Every part finds the same scales; one of them writes them down.
    alignas(64) float unused_scale[kSlots];
    alignas(64) std::int32_t unused_zero_points[kSlots];
    token_ops::Quantize quantize = {};
    quantize.x = rows.x;
    quantize.rows = rows.count;
    quantize.vectors = rows.vectors;
    quantize.quantization = shape.form.quantization;
    quantize.low = low;
    quantize.high = high;
    quantize.plain = shape.form.plain;
    quantize.q = static_cast<std::uint8_t*>(shape.data) + panel * panels::bytes_in_panel(features) +
                 rows.first * kSlots;
    quantize.scale = part == 0 ? shape.scale + panel * kSlots : unused_scale;
    quantize.zero_points = part == 0 ? shape.zero_points + panel * kSlots : unused_zero_points;
    ops->quantize(quantize);
  }
}

void Ending::whole(std::int64_t panel, bool ranged, float* x) const {
  if (norm != nullptr) {
    moments_of(panel, 0, x);
    normalize(panel, 0, x);
  } else if (!ranged && quantizes()) {
    range_of(panel, 0, x);
  }
  if (!shapes.empty()) convert(panel, 0, x);
}

}  // namespace sparse_runtime::encoder
