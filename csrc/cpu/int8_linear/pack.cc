#include <algorithm>
#include <cstddef>

#include "core/int8_layout.h"
#include "cpu/int8_linear/int8_linear.h"

namespace sparse_runtime::int8_linear {

namespace layout = int8_layout;

void pack(const std::int8_t* w, std::int64_t n, std::int64_t k, std::int8_t* packed,
          std::int32_t* row_sums) {
  std::fill_n(packed, layout::weight_bytes(n, k), std::int8_t{0});
  std::fill_n(row_sums, layout::row_sum_count(n), 0);
  for (std::int64_t row = 0; row < n; ++row) {
    const std::int8_t* from = w + row * k;
    std::int32_t sum = 0;
    for (std::int64_t i = 0; i < k; ++i) sum += from[i];
    row_sums[row] = sum;
    for (std::int64_t group = 0; group < layout::group_count(k); ++group) {
      const std::int64_t first = group * layout::kGroup;
      std::copy_n(from + first, std::min(layout::kGroup, k - first),
                  packed + layout::cell_offset(row, group, k));
    }
  }
}

void unpack(const std::int8_t* packed, std::int64_t n, std::int64_t k, std::int8_t* w) {
  for (std::int64_t row = 0; row < n; ++row) {
    for (std::int64_t group = 0; group < layout::group_count(k); ++group) {
      const std::int64_t first = group * layout::kGroup;
      std::copy_n(packed + layout::cell_offset(row, group, k), std::min(layout::kGroup, k - first),
                  w + row * k + first);
    }
  }
}

}  // namespace sparse_runtime::int8_linear
