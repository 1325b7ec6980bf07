// The parts of a model that a forward pass reads. Immutable once made, shared by all passes.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/aligned.h"
#include "cpu/float_panels/float_panels.h"
#include "cpu/int8_panels/int8_panels.h"
#include "cpu/token_ops/kernels.h"

namespace sparse_runtime::encoder {

// One device layout of a weight: exactly one of the two is there.
struct Variant {
  std::int64_t most_tokens;  // used up to this many tokens
  std::shared_ptr<const int8_panels::Weight> int8;
  std::shared_ptr<const float_panels::Weight> floats;

  std::int64_t n() const { return int8 ? int8->n : floats->n; }
  std::int64_t k() const { return int8 ? int8->k : floats->k; }
};

struct Linear {
  std::string name;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::vector<Variant> variants;              // ascending; the last takes any number of tokens
  AlignedVector<float> w_scale;               // [n], integers only
  AlignedVector<float> bias;                  // [n] or empty
  AlignedVector<std::int32_t> w_zero_points;  // [n] or empty: all 0; integers only
  AlignedVector<std::int32_t> row_sums;       // [n] of w - its zero point; with w_zero_points
  token_ops::Quantization quantization = {};  // of the input, integers only
  std::vector<token_ops::Output> outputs;     // [n] or empty, integers only
  bool finite = false;                        // all of w_scale and bias

  const Variant& variant_for(std::int64_t tokens) const {
    for (const Variant& variant : variants) {
      if (tokens <= variant.most_tokens) return variant;
    }
    return variants.back();
  }
  bool is_integer() const { return variants.front().int8 != nullptr; }
};

struct Norm {
  AlignedVector<float> weight;
  AlignedVector<float> bias;
  bool has_statistics = true;  // false: x * weight + bias alone (NoNorm)
  float eps = 0.0f;            // with statistics only
};

// An embedding table, row-major.
struct Table {
  const float* data;
  std::int64_t rows;
};

struct Sequence {
  std::int64_t start;  // first token in the stream
  std::int64_t length;
  std::int64_t position;  // of its first token, for attention's bias
};

}  // namespace sparse_runtime::encoder
