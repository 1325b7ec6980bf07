// Float linears over panels of tokens: packing into device layouts, and the kernel for each.
#pragma once

#include <cstdint>
#include <memory>

#include "core/aligned.h"
#include "cpu/float_panels/kernels.h"
#include "cpu/isa.h"

namespace sparse_runtime::float_panels {

// A packed weight; owns its memory.
struct Weight {
  Layout layout;
  std::int64_t n;  // as given, not padded
  std::int64_t k;
  AlignedVector<float> floats;          // the layouts in float32
  AlignedVector<std::uint16_t> halves;  // the layouts in bf16
  AlignedVector<std::int32_t> starts;
  AlignedVector<std::uint16_t> index;
  AlignedVector<RowUnits> order;  // kSparse32

  WeightView view() const;
  std::int64_t bytes() const;
};

// w: float32 [n, k] row-major, contiguous; the layouts in bf16 keep what a bf16 can hold of it.
std::unique_ptr<Weight> pack(const float* w, std::int64_t n, std::int64_t k, Layout layout);
void unpack(const Weight& weight, float* w);

// What kSparse32 would hold of w: its nonzeros, and zeros that fill up bands.
std::int64_t sparse32_units(const float* w, std::int64_t n, std::int64_t k);

// n, with the rows of padding.
std::int64_t padded_rows(std::int64_t n);

// The kernel of `layout` that `isa` runs: its own or that of a set it includes; null if none does.
Accumulate accumulate_for(Isa isa, Layout layout);

// The product instructions of the band layouts, and that of tiles; null where `isa` has no tiles.
Peak band_peak32(Isa isa);
Peak band_peak16(Isa isa);
Peak tile_peak16(Isa isa);

}  // namespace sparse_runtime::float_panels
