// Portable C++: no flags beyond the compiler's defaults, runs everywhere.
#include <cstddef>
#include <cstdint>

#include "core/int8_layout.h"
#include "cpu/int8_linear/kernels.h"

namespace sparse_runtime::int8_linear {
namespace {

constexpr int kVectorFloats = 4;

using int8_layout::kCellBytes;
using int8_layout::kGroup;
using int8_layout::kLanes;

// Unsigned: the sum is exact modulo 2^32, which int32 overflow would not be in C++.
using Sum = std::uint32_t;

void accumulate_cell(const std::uint8_t* x, const std::int8_t* cell, int inputs, Sum* sums) {
  std::int32_t values[kGroup] = {};
  for (int i = 0; i < inputs; ++i) values[i] = x[i];
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::int8_t* w = cell + lane * kGroup;
    sums[lane] +=
        static_cast<Sum>(values[0] * w[0] + values[1] * w[1] + values[2] * w[2] + values[3] * w[3]);
  }
}

void accumulate(const Tile& tile, std::int32_t* acc) {
  const std::int64_t panel_bytes = int8_layout::panel_bytes(tile.k);
  const std::int64_t full_groups = tile.k / kGroup;
  const int rest = static_cast<int>(tile.k % kGroup);
  for (int token = 0; token < tile.tokens; ++token) {
    const std::uint8_t* x = tile.x + token * tile.x_stride;
    for (int panel = 0; panel < tile.panel_count; ++panel) {
      const std::int8_t* cell = tile.panels + panel * panel_bytes;
      Sum sums[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        sums[lane] = static_cast<Sum>(tile.start[panel * kLanes + lane]);
      }
      for (std::int64_t g = 0; g < full_groups; ++g, cell += kCellBytes) {
        accumulate_cell(x + g * kGroup, cell, kGroup, sums);
      }
      if (rest != 0) accumulate_cell(x + full_groups * kGroup, cell, rest, sums);
      __builtin_memcpy(acc + token * kTileColumns + panel * kLanes, sums, sizeof(sums));
    }
  }
}

}  // namespace
}  // namespace sparse_runtime::int8_linear

#include "cpu/int8_linear/float_rows.h"

namespace sparse_runtime::int8_linear {

const Kernels kGenericKernels = {1, accumulate, finish, quantize_row, quantize_row_static};

}  // namespace sparse_runtime::int8_linear
