// Everything of an encoder that is not a product: the epilogue of linears, normalization,
// quantization, embedding, and the way in and out of panels. What one instruction set supplies.
// Plain declarations only.
#pragma once

#include <cstdint>

namespace sparse_runtime::token_ops {

enum class Activation { kNone, kRelu, kGelu, kTanh, kSilu, kGeluTanh };

// How an activation is quantized to uint8; a signed value q is stored as q + 128 with its zero
// point. The formulas are those of kernels/linear/reference.py, bit for bit.
//   kAsymmetric     0 .. 255, a zero point a token
//   kSymmetric      -127 .. 127, max|x| / 127
//   kSymmetricFull  -128 .. 127, max|x| / 127.5
//   kStatic         one scale and zero point for all tokens
enum class Scheme { kAsymmetric, kSymmetric, kSymmetricFull, kStatic };
struct Quantization {
  Scheme scheme;
  float scale;     // static only, as the next
  int zero_point;  // in 0 .. 255
};

// A linear's output that is rounded to the levels of a static quantization:
//   v = round_even(clamp(v / scale, low, high)) * scale
// Models that are trained with quantized outputs compute so. A NaN becomes 0.
struct Output {
  float scale;    // 0: this row's output stays as it is
  float inverse;  // 1 / scale
  float low;      // the least and the largest level, counted from the zero point
  float high;
};

// The end of a linear layer for some rows of one panel:
//   v = float(acc - zero_point[slot] * row_sums[r] - w_zero_points[r] * x_sums[slot])
//       * x_scale[slot] * w_scale[r]                                                 integers
//   v = acc                                                                          floats
//   v = activation(output(v + bias[r])) + residual[r][slot]
struct Finish {
  const void* acc;  // int32 or float [rows][64]
  std::int64_t rows;
  int vectors;                   // vectors of 16 slots in use, 1 .. 4
  const float* w_scale;          // [rows]; null: acc is float, and the next three are too
  const std::int32_t* row_sums;  // [rows] of w - its zero point
  const float* float_sums;       // [rows] the same, or null where a sum may leave float's integers
  const float* x_scale;          // [64]
  const std::int32_t* zero_points;    // [64]
  const std::int32_t* w_zero_points;  // [rows] or null: all 0
  const std::int32_t* x_sums;         // [64] of a slot's bytes, with w_zero_points
  const float* bias;                  // [rows] or null
  const Output* outputs;              // [rows], integers only; or null
  // Every reader rounds to 8 or 16 bits, and w_scale and bias hold no NaN and no infinity.
  bool coarse;
  Activation activation;
  const float* residual;  // floats, at the first row; or null. `floats` may be the same
  // Outputs, each at the first row, each or null.
  float* floats;
  std::uint16_t* pairs;  // rows even, first row even
  std::uint16_t* halves;
  float* low;   // [64]: running minimum of v, to be initialised by the caller; NaN from
  float* high;  // [64]: running maximum          the first v that is not finite
};

// Mean and sum of squared deviations of some rows of one panel, slot by slot; in two passes.
struct Moments {
  const float* x;  // floats, at the first row
  std::int64_t rows;
  int vectors;
  float* mean;       // [64]
  float* deviation;  // [64] sum of (x - mean)^2
};

// LayerNorm of some rows of one panel: x = (x - mean) * inverse * weight + bias, in place.
struct Normalize {
  float* x;  // floats, at the first row
  std::int64_t rows;
  int vectors;
  const float* mean;     // [64]
  const float* inverse;  // [64] 1 / sqrt(variance + eps)
  const float* weight;   // at the first row
  const float* bias;
  float* low;   // [64] minimum of the result (NaN: not all of it is finite)
  float* high;  // [64]
};

// Quantizes some rows of one panel, the first a multiple of 64.
struct Quantize {
  const float* x;  // floats, at the first row
  std::int64_t rows;
  int vectors;
  Quantization quantization;
  const float* low;   // [64] minimum over all features, not these rows alone; NaN: not finite;
                      // unused where static, as the next
  const float* high;  // [64]
  bool plain;         // the form of q: plain or grouped
  std::uint8_t* q;    // at the first row; rows up to a multiple of 64 are written as 0
  float* scale;       // [64], written
  std::int32_t* zero_points;  // [64], written
};

// The sum of each slot's bytes in one panel, grouped or plain; k: features, at most 65535.
struct ByteSums {
  const std::uint8_t* x;
  std::int64_t k;
  bool plain;
  std::int32_t* sums;  // [64]
};

constexpr int kMostTables = 8;

// Sums one row of each table for each token and lays the tokens out in one vector of a panel.
struct Embed {
  const float* const* tables;      // [count] float [rows][features]
  const std::int64_t* const* ids;  // [count] int64 [tokens]: the vector's tokens, checked
  int count;                       // 1 .. kMostTables
  int tokens;                      // 1 .. 16
  std::int64_t features;
  int vector;
  float* y;  // floats [features][64]; slots beyond the tokens are written as 0
};

// Statistics of the parts of a panel, two times 64 floats each, brought together: minima and
// maxima, or means and squared deviations of parts of part_rows rows, the last of what is left of
// all rows.
struct Merge {
  const float* parts;
  std::int64_t count;
  std::int64_t part_rows;  // moments only, as the next
  std::int64_t rows;
  float* first;   // [64]
  float* second;  // [64]
};

struct Kernels {
  void (*finish)(const Finish&);
  void (*moments)(const Moments&);
  void (*normalize)(const Normalize&);
  // Minimum and maximum of some rows; NaN where one is not finite.
  void (*range)(const float* x, std::int64_t rows, int vectors, float* low, float* high);
  void (*merge_ranges)(const Merge&);
  void (*merge_moments)(const Merge&);
  void (*quantize)(const Quantize&);
  void (*byte_sums)(const ByteSums&);
  // floats -> pairs, some rows from an even one on; rows up to a multiple of 64 are written as 0.
  void (*to_pairs)(const float* x, std::int64_t rows, int vectors, std::uint16_t* y);
  void (*embed)(const Embed&);
  // One panel's `tokens` (1 .. 64) to and from rows `stride` floats apart.
  void (*to_rows)(const float* panel, std::int64_t features, int tokens, float* rows,
                  std::int64_t stride);
  void (*from_rows)(const float* rows, std::int64_t stride, std::int64_t features, int tokens,
                    float* panel);
};

extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;

}  // namespace sparse_runtime::token_ops
