// One linear layer over a stream: the product by tiles, each finished as soon as it is done.
#pragma once

#include <cstdint>
#include <memory>

#include "cpu/encoder/ending.h"
#include "cpu/encoder/layers.h"
#include "cpu/encoder/tiling.h"
#include "cpu/isa.h"
#include "cpu/token_ops/kernels.h"

namespace sparse_runtime::encoder {

// AMX tiles, of which a call prepares many rows' together.
bool is_tiled(const Variant& variant);

// Rows that the device layout holds together.
std::int64_t row_group_of(const Linear& linear, const Variant& variant);

struct Product {
  // Filled in by the planner.
  std::shared_ptr<const Linear> linear;
  const Variant* variant = nullptr;
  const char* x = nullptr;                    // first panel
  const float* x_scale = nullptr;             // [panel][64], integers
  const std::int32_t* zero_points = nullptr;  // [panel][64], integers
  token_ops::Activation activation = token_ops::Activation::kNone;
  const float* residual = nullptr;  // floats
  float* floats = nullptr;          // output, or null; may be the residual
  bool coarse = false;              // as in token_ops::Finish
  // The floats are for the ending alone: a task keeps them in its scratch, which stays in the cache
  // of its core where a whole stream would go through memory.
  bool keeps_floats = false;
  std::uint16_t* bf16 = nullptr;  // output in attention's bf16 form, or null
  // What follows the floats, in parts of task_rows; or null.
  std::shared_ptr<const Ending> ending;
  bool ends_panels = false;  // a task has all rows of its panels: it ends them

  // Filled in by prepare().
  std::int64_t panels = 0;
  int vectors = 0;  // of 16 slots, in use in all panels but the last
  int last_vectors = 0;
  std::int64_t padded_rows = 0;
  std::int64_t panel_bytes = 0;  // of x
  Tiling tiling = {};
  std::int64_t row_tasks = 0;
  std::int64_t panel_tasks = 0;
  int8_panels::Accumulate accumulate_int8 = nullptr;
  float_panels::Accumulate accumulate_floats = nullptr;

  void prepare(Isa isa, std::int64_t panel_count, int num_threads, int vectors_of_panel,
               int vectors_of_last);
  std::int64_t scratch_bytes() const;
  // Tasks of the same panels follow each other.
  void run(std::int64_t task, char* scratch, const token_ops::Kernels& ops) const;

  // Rows of one panel by themselves, whole row groups, and where they go to, as in
  // token_ops::Finish; of weights without zero points.
  struct Rows {
    std::int64_t first;
    std::int64_t count;
    std::int64_t panel;
    float* floats = nullptr;
    std::uint16_t* pairs = nullptr;
    std::uint16_t* halves = nullptr;
  };
  void run_rows(const Rows& rows, char* scratch, const token_ops::Kernels& ops) const;
  static std::int64_t rows_scratch_bytes(std::int64_t rows);

 private:
  void accumulate(std::int64_t row, std::int64_t rows, std::int64_t panel, std::int64_t count,
                  char* scratch) const;
  void finish(std::int64_t row, std::int64_t rows, std::int64_t panel, const void* acc,
              const std::int32_t* x_sums, float* floats_of_panel, float* range,
              const token_ops::Kernels& ops) const;
  // All but the outputs.
  token_ops::Finish finish_of(std::int64_t row, std::int64_t rows, std::int64_t panel,
                              const void* acc, const std::int32_t* x_sums) const;
  void fetch_residual(std::int64_t row, std::int64_t rows, std::int64_t panel) const;
  std::int64_t acc_bytes() const;
  std::int64_t kept_bytes() const;
  // Sums of the slots' bytes in one of the task's panels; for weights with zero points.
  std::int32_t* x_sums_of(char* scratch, std::int64_t panel) const;
};

}  // namespace sparse_runtime::encoder
