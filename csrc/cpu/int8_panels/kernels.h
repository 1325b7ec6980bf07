// What one instruction set supplies to the INT8 linears over panels. Plain declarations only: every
// instruction set's translation unit includes this file.
#pragma once

#include <cstdint>

#include "core/panels.h"

namespace sparse_runtime::int8_panels {

// Device layouts of an int8 weight [n, k]. pack.cc has their byte diagrams.
//   kDense         every group of four inputs of bands of four outputs
//   kBand4Grouped  bands of four outputs; the groups of four inputs where any of the band is not 0
//   kBand4Gathered bands of four outputs; the single inputs where any of the band is not 0
//   kBand1Grouped  each output's groups of four inputs that are not all 0
//   kBand1Gathered each output's single inputs that are not 0
//   kTiles         AMX tiles of 16 outputs x 64 inputs that are not all 0
//   kTileBits      the same tiles as a bitmask and their nonzero bytes, expanded when they are used
enum class Layout {
  kDense,
  kBand4Grouped,
  kBand4Gathered,
  kBand1Grouped,
  kBand1Gathered,
  kTiles,
  kTileBits
};
constexpr int kLayouts = 7;

// Outputs come in blocks of this many; a weight's last block is padded with empty rows.
constexpr std::int64_t kRowBlock = 32;
// Rows of a band: a kernel holds the sums of as many in registers.
constexpr std::int64_t kBand = 4;
// Inputs of a unit, but of tiles'.
constexpr std::int64_t kUnit = 4;
// Of the band1 layouts: inputs that pass over all rows of a call before the next ones do. Their 64
// slots are 48 KiB, so that 16 bits hold an offset into them.
constexpr std::int64_t kInputBlock = 768;

static constexpr std::int64_t input_blocks(std::int64_t k) {
  // No inputs at all are one empty block: the sums are zero.
  return k == 0 ? 1 : (k + kInputBlock - 1) / kInputBlock;
}

// Whether the activations must be in the plain form; grouped otherwise.
static constexpr bool reads_plain(Layout layout) {
  return layout == Layout::kBand4Gathered || layout == Layout::kBand1Gathered;
}

// Whether a panel with two or three of its vectors in use costs little more than that part of a
// full one: weights are few and shared by rows, so neither they nor the activations are what takes
// long.
static constexpr bool suits_fewer_vectors(Layout layout) {
  return layout == Layout::kBand4Grouped || layout == Layout::kBand4Gathered ||
         layout == Layout::kBand1Grouped;
}

// Rows that a layout holds together, and that a call takes whole. Of more rows, more are equally
// long; fewer leave small weights enough tasks.
static constexpr std::int64_t row_group(Layout layout, std::int64_t padded_rows, std::int64_t k) {
  if (layout != Layout::kBand1Grouped && layout != Layout::kBand1Gathered) return kRowBlock;
  return padded_rows <= 768 || panels::may_project_heads(padded_rows, k) ? 64 : 128;
}

// A row of a group, and its units in one block.
struct RowUnits {
  std::uint8_t row;
  std::uint8_t units;
};
static_assert(kInputBlock / kUnit < 256);

struct WeightView {
  Layout layout;
  std::int64_t n;  // padded to kRowBlock
  std::int64_t k;
  const std::int8_t* values;
  const std::int32_t* starts;   // where the units of a band, part or row of tiles begin; one more
  const std::uint16_t* index;   // per unit: group, inputs, offsets or tile column
  const std::uint64_t* masks;   // kTileBits only
  const std::int64_t* offsets;  // kTileBits only: per tile, its first byte in values
  const RowUnits* order;        // band1 only
};

// One call: rows [row, row + rows), whole groups, of some consecutive panels.
struct Call {
  std::int64_t row;
  std::int64_t rows;
  const std::uint8_t* x;      // first panel, 64-byte aligned
  std::int64_t panel_stride;  // bytes
  int panels;
  int last_vectors;   // vectors of 16 slots that are in use in the last panel, 1 .. 4
  std::int32_t* acc;  // [panels][rows][64], 64-byte aligned; unused vectors: unspecified
  void* scratch;      // kScratchBytes, 64-byte aligned, this thread's own
};
constexpr std::int64_t kScratchBytes = 64 * 1024;

// acc[p][r][slot] = sum_k x[p][k][slot] * w[row + r][k], modulo 2^32, x unsigned.
using Accumulate = void (*)(const WeightView& w, const Call& call);

// The set's product instruction by itself, `rounds` times some number of them, with operands at
// hand: what no layout can exceed. Returns the multiplications and additions done.
using Peak = std::int64_t (*)(std::int64_t rounds);

struct Kernels {
  Accumulate accumulate[kLayouts];  // by Layout; null where the set has none of its own
  Peak peak;
};

extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kAmxKernels;

}  // namespace sparse_runtime::int8_panels
