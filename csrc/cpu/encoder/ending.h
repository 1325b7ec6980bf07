// What follows the floats of a value: normalization, and the forms that its readers want.
//
// Where panels are many, one task ends a panel from the first step to the last, right after its
// product. Where they are few, each panel's rows are cut into parts, and the threads exchange no
// more than sums, minima and maxima between the steps: every float stays with the core that made
// it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/panels.h"
#include "cpu/encoder/layers.h"
#include "cpu/token_ops/kernels.h"

namespace sparse_runtime::encoder {

// How an operation reads a value.
struct Form {
  enum class Kind { kFloats, kBytes, kPairs, kAttentionBf16 };
  Kind kind;
  bool plain = false;                         // kBytes
  token_ops::Quantization quantization = {};  // kBytes

  bool operator==(const Form& other) const {
    return kind == other.kind && plain == other.plain &&
           quantization.scheme == other.quantization.scheme &&
           quantization.scale == other.quantization.scale &&
           quantization.zero_point == other.quantization.zero_point;
  }
};

// A value in one form; scales and zero points for bytes only.
struct Shape {
  Form form = {Form::Kind::kFloats};
  void* data = nullptr;
  float* scale = nullptr;               // [panel][64]
  std::int32_t* zero_points = nullptr;  // [panel][64]
};

class Ending {
 public:
  // Statistics of the parts of a panel: two floats a slot.
  static std::int64_t statistics_floats(std::int64_t panels, std::int64_t parts) {
    return panels * parts * 2 * panels::kSlots;
  }

  const token_ops::Kernels* ops = nullptr;
  float* floats = nullptr;  // null where a product keeps them to itself
  std::int64_t features = 0;
  std::int64_t panels = 0;
  int vectors = 0;  // as in Product
  int last_vectors = 0;
  std::shared_ptr<const Norm> norm;  // or null
  std::vector<Shape> shapes;         // bytes and pairs
  std::int64_t part_rows = 0;        // of statistics: a multiple of 32, or all
  std::int64_t parts = 0;
  std::int64_t joined = 1;   // parts that are converted together: a multiple of 64 rows, or all
  std::int64_t group = 1;    // panels of one task, as in the product: they are in that core's cache
  float* moments = nullptr;  // statistics: means, deviations; with moments
  float* ranges = nullptr;   // statistics: minima, maxima; with bytes or a norm

  // Whether a reader's scales depend on the values.
  bool needs_range() const;
  bool takes_moments() const { return norm != nullptr && norm->has_statistics; }
  // The steps, for one part of one panel whose floats are x. The first is moments_of (a norm that
  // takes moments) or range_of (no norm, where the product has not kept the range); each needs all
  // parts of the panel to be through the last.
  void moments_of(std::int64_t panel, std::int64_t part, float* x) const;
  void range_of(std::int64_t panel, std::int64_t part, float* x) const;
  void normalize(std::int64_t panel, std::int64_t part, float* x) const;
  // part: of those that are joined.
  void convert(std::int64_t panel, std::int64_t part, float* x) const;
  // All steps of a panel in one part.
  void whole(std::int64_t panel, bool ranged, float* x) const;

  float* floats_of(std::int64_t panel) const { return floats + panel * features * panels::kSlots; }

 private:
  struct Rows {
    float* x;
    std::int64_t first;
    std::int64_t count;
    int vectors;
  };
  Rows rows_of(std::int64_t panel, std::int64_t part, float* x, std::int64_t joined = 1) const;
  float* statistics_of(float* statistics, std::int64_t panel, std::int64_t part) const {
    return statistics + (panel * parts + part) * 2 * panels::kSlots;
  }
};

}  // namespace sparse_runtime::encoder
