// Internal linkage, like everything that translation units of several instruction sets include.
#pragma once

#include "cpu/int8_linear/kernels.h"

namespace sparse_runtime::int8_linear {
namespace {

inline __attribute__((always_inline)) void prefetch_upcoming(const Tile& tile, int token,
                                                             int panel) {
  for (const Upcoming& rows : tile.upcoming) {
    if (rows.first != nullptr) __builtin_prefetch(rows.first + token * rows.stride + panel * 64);
  }
}

}  // namespace
}  // namespace sparse_runtime::int8_linear
