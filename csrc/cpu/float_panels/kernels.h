// What one instruction set supplies to the float linears over panels. Plain declarations only.
#pragma once

#include <cstdint>

namespace sparse_runtime::float_panels {

// Device layouts of a float weight [n, k]. pack.cc has their byte diagrams.
//   kDense32   float32, every input; reads floats
//   kSparse32  float32, the nonzero inputs of each output; reads floats
//   kDense16   bf16, every pair of inputs; reads pairs
//   kTiles16   bf16, AMX tiles of 16 outputs x 32 inputs that are not all 0; reads pairs
enum class Layout { kDense32, kSparse32, kDense16, kTiles16 };
constexpr int kLayouts = 4;

// Outputs come in blocks of this many; a weight's last block is padded with empty rows.
constexpr std::int64_t kRowBlock = 32;
// Rows whose sums a dense kernel holds in registers.
constexpr std::int64_t kBand = 4;
// Inputs that pass over all rows of a call before the next ones do: their 64 slots are 32 KiB, and
// stay in the L1 cache.
constexpr std::int64_t kInputBlock = 128;

static constexpr bool reads_pairs(Layout layout) {
  return layout == Layout::kDense16 || layout == Layout::kTiles16;
}

struct WeightView {
  Layout layout;
  std::int64_t n;  // padded to kRowBlock
  std::int64_t k;
  const float* floats;
  const std::uint16_t* halves;
  const std::int32_t* starts;
  const std::uint16_t* index;
};

// One call: rows [row, row + rows), multiples of kRowBlock, of some consecutive panels.
struct Call {
  std::int64_t row;
  std::int64_t rows;
  const void* x;              // first panel, floats or pairs, 64-byte aligned
  std::int64_t panel_stride;  // bytes
  int panels;
  int last_vectors;  // vectors of 16 slots that are in use in the last panel, 1 .. 4
  float* acc;        // [panels][rows][64], 64-byte aligned; unused vectors: unspecified
};

// acc[p][r][slot] = sum_k x[p][k][slot] * w[row + r][k] in float32.
using Accumulate = void (*)(const WeightView& w, const Call& call);

// The set's product instructions by themselves, as in cpu/int8_panels/kernels.h.
using Peak = std::int64_t (*)(std::int64_t rounds);

struct Kernels {
  Accumulate accumulate[kLayouts];  // by Layout; null where the set has none of its own
  Peak peak32;                      // of float32; null where the set has none of its own
  Peak peak16;                      // of bf16
};

extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
extern const Kernels kAmxKernels;

}  // namespace sparse_runtime::float_panels
