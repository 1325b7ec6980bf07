// What one instruction set supplies to the float linears over panels. Plain declarations only.
#pragma once

#include <cstdint>

#include "core/panels.h"

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
// Rows whose sums a kernel holds in registers.
constexpr std::int64_t kBand = 4;
// Of kDense32, whose products share a load of inputs. What is left of a group is a lower band.
constexpr std::int64_t kTallBand = 6;
// Inputs that pass over all rows of a call before the next ones do: their 64 slots are 40 KiB, and
// stay in the L1 cache.
constexpr std::int64_t kInputBlock = 160;

static constexpr bool reads_pairs(Layout layout) {
  return layout == Layout::kDense16 || layout == Layout::kTiles16;
}

// Rows that a layout holds together, and that a call takes whole. Of more sparse rows, more are
// equally long; fewer leave small weights enough tasks.
static constexpr std::int64_t row_group(Layout layout, std::int64_t padded_rows, std::int64_t k) {
  if (layout == Layout::kSparse32) {
    return padded_rows < 768 || panels::may_project_heads(padded_rows, k) ? 64 : 128;
  }
  return layout == Layout::kDense32 ? 64 : kRowBlock;
}

// A row of a group, and how many of its inputs in one block are held.
struct RowUnits {
  std::uint8_t row;
  std::uint8_t units;
};
static_assert(kInputBlock < 256);

struct WeightView {
  Layout layout;
  std::int64_t n;  // padded to kRowBlock
  std::int64_t k;
  const float* floats;
  const std::uint16_t* halves;
  const std::int32_t* starts;
  const std::uint16_t* index;
  const RowUnits* order;
};

// One call: rows [row, row + rows), whole groups, of some consecutive panels.
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
