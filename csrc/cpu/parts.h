// How packed weights are cut: group of rows by group, and block of inputs by block within.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sparse_runtime {

// The rows [row, row + rows) and inputs [input, end) that a device layout holds together.
struct Part {
  std::int64_t row;
  std::int64_t rows;
  std::int64_t input;
  std::int64_t end;
};

// All parts of a weight [rows, k], as they lie in memory; `blocks` is how many of `block` inputs.
template <typename Visit>
void for_parts(std::int64_t rows, std::int64_t group, std::int64_t k, std::int64_t block,
               std::int64_t blocks, Visit visit) {
  for (std::int64_t row = 0; row < rows; row += group) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t input = b * block;
      visit(Part{row, std::min(group, rows - row), input, std::min(input + block, k)});
    }
  }
}

}  // namespace sparse_runtime
