// Dense INT8 linear: packing, quantization of activations, and the product with a fused epilogue.
// Arguments are trusted here; csrc/bindings checks them. docs/kernels/int8_linear.md has the
// formulas and the byte diagram.
#pragma once

#include <cstdint>

#include "cpu/int8_linear/kernels.h"
#include "cpu/isa.h"

namespace sparse_runtime::int8_linear {

// w: int8 [n, k] row-major, contiguous.
void pack(const std::int8_t* w, std::int64_t n, std::int64_t k, std::int8_t* packed,
          std::int32_t* row_sums);
void unpack(const std::int8_t* packed, std::int64_t n, std::int64_t k, std::int8_t* w);

struct QuantizeShape {
  std::int64_t t;
  std::int64_t k;
  std::int64_t x_stride;  // elements
  std::int64_t q_stride;  // bytes
};

struct StaticQuantization {
  float scale;
  int zero_point;
  int low;
  int high;
};

void quantize_rows(Isa isa, int num_threads, const QuantizeShape& shape, const float* x,
                   std::uint8_t* q, float* scale);
void quantize_rows_asymmetric(Isa isa, int num_threads, const QuantizeShape& shape, const float* x,
                              std::uint8_t* q, float* scale, std::uint8_t* zero_points);
void quantize_static(Isa isa, int num_threads, const QuantizeShape& shape, const float* x,
                     const StaticQuantization& quantization, std::uint8_t* q);

struct Product {
  const std::uint8_t* x;
  std::int64_t x_stride;  // bytes
  std::int64_t t;
  const std::int8_t* packed;
  const std::int32_t* row_sums;
  std::int64_t n;
  std::int64_t k;
  int zero_point;                   // of every token, where there are no zero_points
  const std::uint8_t* zero_points;  // [t] or null
};

struct Epilogue {
  const float* x_scale;
  bool x_scale_is_per_row;
  const float* w_scale;
  const float* bias;  // or null
  Activation activation;
  const float* residual;  // or null
  std::int64_t residual_stride;
};

void linear(Isa isa, int num_threads, const Product& product, const Epilogue& epilogue, float* out,
            std::int64_t out_stride);
void accumulate(Isa isa, int num_threads, const Product& product, std::int32_t* out,
                std::int64_t out_stride);

}  // namespace sparse_runtime::int8_linear
