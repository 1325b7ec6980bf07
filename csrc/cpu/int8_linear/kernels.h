// What one instruction set supplies to the int8_linear family: four hot loops. Tiling, threads and
// checks are written once, in int8_linear.cc. Plain declarations only: every instruction set's
// translation unit includes this file.
#pragma once

#include <cstdint>

namespace sparse_runtime::int8_linear {

enum class Activation { kNone, kRelu, kGelu };

// Outputs of one tile: four panels of sixteen.
constexpr int kTilePanels = 4;
constexpr int kTileColumns = 64;
// An instruction set may work on fewer tokens at a time, never on more.
constexpr int kMaxTileTokens = 8;

struct Tile {
  const std::uint8_t* x;  // first token
  std::int64_t x_stride;  // bytes
  int tokens;             // 1 .. tile_tokens
  const std::int8_t* panels;
  int panel_count;  // 1 .. kTilePanels
  std::int64_t k;
  const std::int32_t* start;  // [kTileColumns] initial value of every token's accumulators
};

struct Finish {
  const std::int32_t* acc;  // kTileColumns, the accumulators of one token
  const std::int32_t* row_sums;
  int zero_point;  // still to be taken from acc, times row_sums
  int columns;     // 1 .. kTileColumns
  float x_scale;
  const float* w_scale;
  const float* bias;      // or null
  const float* residual;  // or null
  Activation activation;
  float* out;
};

struct Kernels {
  int tile_tokens;
  // acc[token * kTileColumns + column] = start[column] + sum_k x[token, k] * w[column, k], modulo
  // 2^32. Columns beyond panel_count panels are left alone.
  void (*accumulate)(const Tile& tile, std::int32_t* acc);
  // sum = acc[j] - zero_point * row_sums[j], modulo 2^32;
  // out[j] = act(float(sum) * x_scale * w_scale[j] + bias[j]) + residual[j], left to right.
  void (*finish)(const Finish& row);
  // Symmetric quantization of one row; returns its scale.
  float (*quantize_row)(const float* x, std::int64_t k, std::uint8_t* q);
  // Asymmetric quantization of one row; returns its scale.
  float (*quantize_row_asymmetric)(const float* x, std::int64_t k, std::uint8_t* q,
                                   std::uint8_t* zero_point);
  // q = clamp(round_half_even(x / scale) + zero_point, low, high); NaN becomes zero_point.
  void (*quantize_row_static)(const float* x, std::int64_t k, float scale, int zero_point, int low,
                              int high, std::uint8_t* q);
};

extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512VnniKernels;

}  // namespace sparse_runtime::int8_linear
