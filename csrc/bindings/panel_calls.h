// What the bindings of both kinds of panels share: layouts by name, who may read what, timing.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "bindings/checks.h"

namespace sparse_runtime::bindings {

constexpr std::int64_t kMaxInputs = 65535;  // indices are 16 bits wide
constexpr std::int64_t kMaxOutputs = std::int64_t{1} << 31;

// The layout whose name stands at its place in `names`.
template <typename Layout, std::size_t N>
Layout layout_of(const Checks& checks, const std::array<const char*, N>& names,
                 const std::string& name) {
  std::string known;
  for (std::size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<Layout>(i);
    known += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  checks.fail("layout", "one of " + known, "\"" + name + "\"");
}

// Rows that a kernel is asked for: within the weight, in groups that are whole but for the last.
inline void check_rows(const Checks& checks, std::int64_t row, std::int64_t rows,
                       std::int64_t padded, std::int64_t group) {
  checks.range("row", row, 0, padded);
  checks.range("rows", rows, 0, padded - row);
  if (row % group != 0 || (rows % group != 0 && row + rows != padded)) {
    checks.fail("rows", "whole groups of " + std::to_string(group),
                std::to_string(row) + " and " + std::to_string(rows));
  }
}

// The shortest of `repeats` runs, in seconds, on the calling thread.
template <typename Run>
double shortest(int repeats, Run run) {
  using Clock = std::chrono::steady_clock;
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repeats; ++i) {
    const Clock::time_point begin = Clock::now();
    run();
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best = seconds < best ? seconds : best;
  }
  return best;
}

}  // namespace sparse_runtime::bindings
