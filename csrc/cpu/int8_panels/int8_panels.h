// INT8 linears over panels of tokens: packing into device layouts, and the kernel for each.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/aligned.h"
#include "cpu/int8_panels/kernels.h"
#include "cpu/isa.h"

namespace sparse_runtime::int8_panels {

// A packed weight; owns its memory.
struct Weight {
  Layout layout;
  std::int64_t n;  // as given, not padded
  std::int64_t k;
  AlignedVector<std::int8_t> values;
  AlignedVector<std::int32_t> starts;
  AlignedVector<std::uint16_t> index;
  AlignedVector<std::uint64_t> masks;
  AlignedVector<std::int64_t> offsets;
  AlignedVector<RowUnits> order;
  AlignedVector<std::int32_t> row_sums;  // sum_k w[row][k], padded to kRowBlock
  // The same where no sum of products can leave the integers that floats hold (2^24); else empty.
  AlignedVector<float> float_sums;

  WeightView view() const;
  std::int64_t bytes() const;  // of everything above
};

// w: int8 [n, k] row-major, contiguous; n * k may be 0; k <= 65535.
std::unique_ptr<Weight> pack(const std::int8_t* w, std::int64_t n, std::int64_t k, Layout layout);
void unpack(const Weight& weight, std::int8_t* w);

// n, with the rows of padding.
std::int64_t padded_rows(std::int64_t n);

// What each layout would multiply, counted without packing.
struct Cost {
  std::int64_t units[kLayouts];  // by Layout
  std::int64_t nonzeros;
};
Cost count(const std::int8_t* w, std::int64_t n, std::int64_t k);

// The kernel of `layout` that `isa` runs: its own or that of a set it includes; null if none does.
Accumulate accumulate_for(Isa isa, Layout layout);

// The product instruction of the band layouts, and that of tiles; null where `isa` has no tiles.
Peak band_peak(Isa isa);
Peak tile_peak(Isa isa);

}  // namespace sparse_runtime::int8_panels
