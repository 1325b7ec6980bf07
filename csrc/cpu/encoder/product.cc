#include "cpu/encoder/product.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "core/panels.h"

namespace sparse_runtime::encoder {
namespace {

constexpr int kSlots = panels::kSlots;
constexpr std::int64_t kRowBlock = int8_panels::kRowBlock;
static_assert(kRowBlock == float_panels::kRowBlock);
constexpr std::int64_t kKernelScratch = int8_panels::kScratchBytes;
constexpr std::int64_t kFloat = sizeof(float);

void fetch(const char* from, std::int64_t bytes) {
  constexpr std::int64_t kLine = 64;
  for (std::int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(from + at, 0, 2);
}

// Inputs that other cores have just written, and that a sparse product reads in no order that the
// hardware would foresee, come into this core's L2 cache one behind the other.
void fetch_inputs(const char* from, std::int64_t bytes) {
  constexpr std::int64_t kWorthwhile = 96 * 1024;  // less is soon there anyway
  if (bytes >= kWorthwhile) fetch(from, bytes);
}

// Whether several blocks of inputs pass over the rows of a call.
bool is_blocked(const Variant& variant) {
  if (variant.floats) {
    return variant.floats->layout == float_panels::Layout::kSparse32 &&
           variant.k() > float_panels::kInputBlock;
  }
  const int8_panels::Layout layout = variant.int8->layout;
  return (layout == int8_panels::Layout::kBand1Grouped ||
          layout == int8_panels::Layout::kBand1Gathered) &&
         int8_panels::input_blocks(variant.k()) > 1;
}

}  // namespace

bool is_tiled(const Variant& variant) {
  if (variant.floats) return variant.floats->layout == float_panels::Layout::kTiles16;
  return variant.int8->layout == int8_panels::Layout::kTiles ||
         variant.int8->layout == int8_panels::Layout::kTileBits;
}

std::int64_t row_group_of(const Linear& linear, const Variant& variant) {
  const std::int64_t padded_rows = (linear.n + kRowBlock - 1) / kRowBlock * kRowBlock;
  return variant.int8 ? int8_panels::row_group(variant.int8->layout, padded_rows, linear.k)
                      : float_panels::row_group(variant.floats->layout, padded_rows, linear.k);
}

void Product::prepare(Isa isa, std::int64_t panel_count, int num_threads, int vectors_of_panel,
                      int vectors_of_last) {
  panels = panel_count;
  vectors = vectors_of_panel;
  last_vectors = vectors_of_last;
  padded_rows = (linear->n + kRowBlock - 1) / kRowBlock * kRowBlock;
  if (variant->int8) {
    accumulate_int8 = int8_panels::accumulate_for(isa, variant->int8->layout);
    panel_bytes = panels::bytes_in_panel(linear->k);
  } else {
    accumulate_floats = float_panels::accumulate_for(isa, variant->floats->layout);
    panel_bytes = float_panels::reads_pairs(variant->floats->layout)
                      ? panels::bf16_in_panel(linear->k) * std::int64_t{sizeof(std::uint16_t)}
                      : panels::floats_in_panel(linear->k) * std::int64_t{sizeof(float)};
  }
  if (accumulate_int8 == nullptr && accumulate_floats == nullptr) {
    throw std::invalid_argument(
        linear->name +
        ": expected an instruction set that runs its device layout, got one "
        "without that kernel; pack the layer for it");
  }
  tiling = tiling_for({padded_rows, std::max<std::int64_t>(panel_bytes, 1), panels, num_threads,
                       row_group_of(*linear, *variant), is_tiled(*variant), is_blocked(*variant)});
  row_tasks = (padded_rows + tiling.task_rows - 1) / tiling.task_rows;
  panel_tasks = (panels + tiling.panels - 1) / tiling.panels;
}

std::int64_t Product::acc_bytes() const {
  return tiling.panels * tiling.call_rows * kSlots * std::int64_t{sizeof(float)};
}

// [kernel's scratch][accumulators][floats of the task's panels, if it keeps them][x sums]
std::int64_t Product::scratch_bytes() const {
  return kKernelScratch + acc_bytes() + kept_bytes() + tiling.panels * kSlots * kFloat;
}

std::int64_t Product::kept_bytes() const {
  return keeps_floats ? tiling.panels * panels::floats_in_panel(linear->n) * kFloat : 0;
}

std::int32_t* Product::x_sums_of(char* scratch, std::int64_t panel) const {
  char* sums = scratch + kKernelScratch + acc_bytes() + kept_bytes();
  return reinterpret_cast<std::int32_t*>(sums) + panel * kSlots;
}

void Product::run(std::int64_t task, char* scratch, const token_ops::Kernels& ops) const {
  const std::int64_t row_task = task % row_tasks;
  const std::int64_t panel = task / row_tasks * tiling.panels;
  const std::int64_t count = std::min(tiling.panels, panels - panel);
  const std::int64_t first = row_task * tiling.task_rows;
  const std::int64_t end = std::min(first + tiling.task_rows, padded_rows);
  // Without a norm between, the epilogue itself keeps the range for the quantization.
  const bool ranged = ending != nullptr && ending->norm == nullptr && ending->needs_range();
  const auto range_of = [&](std::int64_t p) {
    return !ranged ? nullptr : ending->ranges + ((panel + p) * row_tasks + row_task) * 2 * kSlots;
  };
  const auto floats_of = [&](std::int64_t p) -> float* {
    if (keeps_floats) {
      auto* kept = reinterpret_cast<float*>(scratch + kKernelScratch + acc_bytes());
      return kept + p * panels::floats_in_panel(linear->n);
    }
    return floats == nullptr ? nullptr : floats + (panel + p) * panels::floats_in_panel(linear->n);
  };
  for (std::int64_t p = 0; ranged && p < count; ++p) {
    std::fill_n(range_of(p), kSlots, std::numeric_limits<float>::infinity());
    std::fill_n(range_of(p) + kSlots, kSlots, -std::numeric_limits<float>::infinity());
  }
  if (row_tasks > 1) fetch_inputs(x + panel * panel_bytes, count * panel_bytes);
  for (std::int64_t p = 0; !linear->w_zero_points.empty() && p < count; ++p) {
    const char* bytes = x + (panel + p) * panel_bytes;
    ops.byte_sums({reinterpret_cast<const std::uint8_t*>(bytes), linear->k,
                   int8_panels::reads_plain(variant->int8->layout), x_sums_of(scratch, p)});
  }
  for (std::int64_t row = first; row < end; row += tiling.call_rows) {
    const std::int64_t rows = std::min(tiling.call_rows, end - row);
    if (residual != nullptr && !is_tiled(*variant)) {
      fetch_residual(row, std::min(rows, linear->n - row), panel);
    }
    accumulate(row, rows, panel, count, scratch);
    const auto* acc = reinterpret_cast<const float*>(scratch + kKernelScratch);
    for (std::int64_t p = 0; p < count; ++p) {
      finish(row, std::min(rows, linear->n - row), panel + p, acc + p * rows * kSlots,
             x_sums_of(scratch, p), floats_of(p), range_of(p), ops);
    }
  }
  if (ending == nullptr) return;
  for (std::int64_t p = 0; p < count; ++p) {
    if (ends_panels) {
      ending->whole(panel + p, ranged, floats_of(p));
    } else if (ending->takes_moments()) {
      ending->moments_of(panel + p, row_task, floats_of(p));
    }
  }
}

// It is added when the product of these rows is done.
void Product::fetch_residual(std::int64_t row, std::int64_t rows, std::int64_t panel) const {
  const int used = panel + 1 == panels ? last_vectors : vectors;
  const float* from = residual + (panel * linear->n + row) * kSlots;
  for (std::int64_t r = 0; r < rows; ++r, from += kSlots) {
    for (int v = 0; v < used; ++v) __builtin_prefetch(from + v * panels::kVector, 0, 2);
  }
}

void Product::run_rows(const Rows& rows, char* scratch, const token_ops::Kernels& ops) const {
  accumulate(rows.first, rows.count, rows.panel, 1, scratch);
  token_ops::Finish finish =
      finish_of(rows.first, rows.count, rows.panel, scratch + kKernelScratch, nullptr);
  finish.floats = rows.floats;
  finish.pairs = rows.pairs;
  finish.halves = rows.halves;
  ops.finish(finish);
}

std::int64_t Product::rows_scratch_bytes(std::int64_t rows) {
  return kKernelScratch + rows * kSlots * kFloat;
}

void Product::accumulate(std::int64_t row, std::int64_t rows, std::int64_t panel,
                         std::int64_t count, char* scratch) const {
  const int vectors_of_end = panel + count == panels ? last_vectors : vectors;
  char* acc = scratch + kKernelScratch;
  const char* input = x + panel * panel_bytes;
  if (accumulate_int8 != nullptr) {
    int8_panels::Call call = {row,
                              rows,
                              reinterpret_cast<const std::uint8_t*>(input),
                              panel_bytes,
                              static_cast<int>(count),
                              vectors_of_end,
                              reinterpret_cast<std::int32_t*>(acc),
                              scratch};
    accumulate_int8(variant->int8->view(), call);
  } else {
    float_panels::Call call = {row,
                               rows,
                               input,
                               panel_bytes,
                               static_cast<int>(count),
                               vectors_of_end,
                               reinterpret_cast<float*>(acc)};
    accumulate_floats(variant->floats->view(), call);
  }
}

token_ops::Finish Product::finish_of(std::int64_t row, std::int64_t rows, std::int64_t panel,
                                     const void* acc, const std::int32_t* x_sums) const {
  token_ops::Finish finish = {};
  finish.acc = acc;
  finish.rows = rows;
  finish.vectors = panel + 1 == panels ? last_vectors : vectors;
  finish.activation = activation;
  finish.coarse = coarse;
  finish.bias = linear->bias.empty() ? nullptr : linear->bias.data() + row;
  if (!variant->int8) return finish;
  finish.w_scale = linear->w_scale.data() + row;
  finish.row_sums = variant->int8->row_sums.data() + row;
  finish.float_sums =
      variant->int8->float_sums.empty() ? nullptr : variant->int8->float_sums.data() + row;
  if (!linear->w_zero_points.empty()) {
    finish.w_zero_points = linear->w_zero_points.data() + row;
    finish.x_sums = x_sums;
    finish.row_sums = linear->row_sums.data() + row;
    finish.float_sums = nullptr;
  }
  finish.x_scale = x_scale + panel * kSlots;
  finish.zero_points = zero_points + panel * kSlots;
  finish.outputs = linear->outputs.empty() ? nullptr : linear->outputs.data() + row;
  return finish;
}

void Product::finish(std::int64_t row, std::int64_t rows, std::int64_t panel, const void* acc,
                     const std::int32_t* x_sums, float* floats_of_panel, float* range,
                     const token_ops::Kernels& ops) const {
  // Attention reads queries and keys as pairs, values as halves: a block may hold both.
  const std::int64_t values_begin = linear->n / 3 * 2;
  const auto* rows_of_acc = static_cast<const float*>(acc);  // int32 is as wide
  const std::int64_t end = row + rows;
  while (row < end) {
    const std::int64_t stop =
        bf16 != nullptr && row < values_begin ? std::min(end, values_begin) : end;
    token_ops::Finish finish = finish_of(row, stop - row, panel, rows_of_acc, x_sums);
    if (range != nullptr) {
      finish.low = range;
      finish.high = range + kSlots;
    }
    const std::int64_t at = (panel * linear->n + row) * kSlots;
    finish.residual = residual == nullptr ? nullptr : residual + at;
    finish.floats = floats_of_panel == nullptr ? nullptr : floats_of_panel + row * kSlots;
    if (bf16 != nullptr) {
      std::uint16_t* out = bf16 + panel * panels::bf16_in_panel(linear->n) + row * kSlots;
      finish.pairs = row < values_begin ? out : nullptr;
      finish.halves = row < values_begin ? nullptr : out;
    }
    ops.finish(finish);
    rows_of_acc += finish.rows * kSlots;
    row = stop;
  }
}

}  // namespace sparse_runtime::encoder
