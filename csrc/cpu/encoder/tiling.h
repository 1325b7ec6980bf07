// How the product of a linear layer is cut into tasks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/panels.h"

namespace sparse_runtime::encoder {

struct Tiling {
  std::int64_t panels;     // of one task, and of one kernel call
  std::int64_t call_rows;  // of one kernel call: its accumulators should stay in the L1 or L2 cache
  std::int64_t task_rows;  // of one task; its last call may have fewer
};

struct ProductShape {
  std::int64_t padded_rows;
  std::int64_t x_panel_bytes;
  std::int64_t panels;
  int num_threads;
  std::int64_t row_group;  // rows that the layout holds together
  bool tiled;              // AMX: weights of 32 rows stay in the L1 cache while panels pass
  bool blocked;            // each block of inputs stays in the L1 cache while a call's rows pass
};

// Whether tasks of about the same size leave next to no thread idle.
inline bool shares_evenly(std::int64_t tasks, int num_threads) {
  const std::int64_t rounds = (tasks + num_threads - 1) / num_threads;
  return 10 * tasks >= 9 * rounds * num_threads;
}

// How many slots of a panel a stream should fill where cores are far from each other. Half full,
// few tokens are one panel a thread, which no other reads until the next attention; a token takes
// longer so (docs/kernels/encoder.md).
inline std::int64_t filled_slots(std::int64_t tokens, int num_threads) {
  constexpr std::int64_t kHalf = panels::kSlots / 2;
  const bool one_each =
      tokens <= kHalf * num_threads && shares_evenly((tokens + kHalf - 1) / kHalf, num_threads);
  return num_threads > 1 && one_each ? kHalf : panels::kSlots;
}

inline Tiling tiling_for(const ProductShape& shape) {
  constexpr std::int64_t kPartRows = 64;  // parts of a value's ending begin at multiples of these
  constexpr std::int64_t kCachedInput = 800 * 1024;  // what a task may keep in the L2 cache
  constexpr std::int64_t kMostTiledPanels = 8;
  constexpr std::int64_t kTasksPerThread = 3;
  // The first weights of a call are prepared before its products, the others beside them.
  constexpr std::int64_t kTiledCallRows = 256;
  constexpr std::int64_t kBlockedCallRows = 768;
  const std::int64_t threads = shape.num_threads;
  const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t call_rows = std::max(kPartRows, shape.row_group);
  const std::int64_t all_rows = ceil_div(shape.padded_rows, call_rows) * call_rows;
  Tiling tiling{1, call_rows, all_rows};
  if (shape.tiled) {
    tiling.call_rows = kTiledCallRows;
    const std::int64_t cached = std::max<std::int64_t>(1, kCachedInput / shape.x_panel_bytes);
    const std::int64_t most = std::min(cached, kMostTiledPanels);
    tiling.panels = std::clamp<std::int64_t>(ceil_div(shape.panels, threads), 1, most);
    if (threads > 1 && shape.panels < threads) tiling.panels = std::min(shape.panels, most);
  }
  const std::int64_t panel_tasks = ceil_div(shape.panels, tiling.panels);
  // Tasks of all rows, if they share out well; they need no stage of their own for the ending.
  if (!shares_evenly(panel_tasks, shape.num_threads)) {
    // Else several tasks a thread, so that an uneven last round costs little.
    const std::int64_t row_tasks = ceil_div(kTasksPerThread * threads, panel_tasks);
    const std::int64_t rows = ceil_div(shape.padded_rows, row_tasks);
    tiling.task_rows = std::min(ceil_div(rows, call_rows) * call_rows, all_rows);
  }
  if (shape.blocked) tiling.call_rows = std::min(kBlockedCallRows, tiling.task_rows);
  return tiling;
}

}  // namespace sparse_runtime::encoder
