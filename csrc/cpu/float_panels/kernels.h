// What one instruction set supplies to the float linears over panels. Plain declarations only.
#pragma once

#include <cstdint>

namespace sparse_runtime::float_panels {

// Device layouts of a float weight [n, k].
//   kDense32      float32, every input; reads floats
//   kSparse32     float32, one output: its nonzero inputs; reads floats
//   kBand4Sparse32 float32, bands of four outputs: the inputs where any of the band is nonzero
//   kDense16      bf16, every pair of inputs; reads pairs
//   kSparse16     bf16, the pairs of inputs that are not both 0; reads pairs
//   kTiles16      bf16 AMX tiles of 16 outputs x 32 inputs that are not all 0; reads pairs
enum class Layout { kDense32, kSparse32, kBand4Sparse32, kDense16, kSparse16, kTiles16 };
constexpr int kLayouts = 6;
constexpr std::int64_t kRowBlock = 32;

static constexpr bool reads_pairs(Layout layout) {
  return layout >= Layout::kDense16;
}

struct WeightView {
  Layout layout;
  std::int64_t n;  // padded to kRowBlock
  std::int64_t k;
  const void* values;  // float or bf16 bits
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
  void* scratch;     // kScratchBytes, 64-byte aligned, this thread's own
};
constexpr std::int64_t kScratchBytes = 64 * 1024;

// acc[p][r][slot] = sum_k x[p][k][slot] * w[row + r][k] in float32.
using Accumulate = void (*)(const WeightView& w, const Call& call);

struct Kernels {
  Accumulate accumulate[kLayouts];
};

extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
extern const Kernels kAmxKernels;

}  // namespace sparse_runtime::float_panels
