#include "cpu/encoder/ending.h"

#include <algorithm>
#include <cmath>

namespace sparse_runtime::encoder {
namespace {

constexpr int kSlots = panels::kSlots;

}  // namespace

bool Ending::needs_range() const {
  return std::any_of(shapes.begin(), shapes.end(), [](const Shape& s) {
    return s.form.kind == Form::Kind::kBytes &&
           s.form.quantization.scheme != token_ops::Scheme::kStatic;
  });
}

Ending::Rows Ending::rows_of(std::int64_t panel, std::int64_t part, float* x,
                             std::int64_t joined) const {
  const std::int64_t rows = joined * part_rows, first = part * rows;
  return {x + first * kSlots, first, std::min(rows, features - first),
          panel + 1 == panels ? last_vectors : vectors};
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
  if (takes_moments()) {
    ops->merge_moments(
        {statistics_of(moments, panel, 0), parts, part_rows, features, mean, inverse});
    for (float& value : inverse) {
      value = 1.0f / std::sqrt(value / static_cast<float>(features) + norm->eps);
    }
  } else {
    // (x - 0) * 1 is x to the last bit.
    std::fill_n(mean, kSlots, 0.0f);
    std::fill_n(inverse, kSlots, 1.0f);
  }
  float* out = statistics_of(ranges, panel, part);
  ops->normalize({rows.x, rows.count, rows.vectors, mean, inverse, norm->weight.data() + rows.first,
                  norm->bias.data() + rows.first, out, out + kSlots});
}

void Ending::convert(std::int64_t panel, std::int64_t part, float* x) const {
  const Rows rows = rows_of(panel, part, x, joined);
  alignas(64) float low[kSlots];
  alignas(64) float high[kSlots];
  if (needs_range()) {
    ops->merge_ranges({statistics_of(ranges, panel, 0), parts, part_rows, features, low, high});
  }
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
    if (takes_moments()) moments_of(panel, 0, x);
    normalize(panel, 0, x);
  } else if (!ranged && needs_range()) {
    range_of(panel, 0, x);
  }
  if (!shapes.empty()) convert(panel, 0, x);
}

}  // namespace sparse_runtime::encoder
