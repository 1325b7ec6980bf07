// Queries, keys and values of one head, and its attention, in one task: what a core projects, no
// other core reads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/panels.h"
#include "cpu/encoder/ending.h"
#include "cpu/encoder/layers.h"
#include "cpu/encoder/product.h"
#include "cpu/panel_attention/panel_attention.h"

namespace sparse_runtime::encoder {

// Of one panel; features: of the queries alone.
inline std::int64_t bytes_of_qkv(std::int64_t features, bool bf16) {
  return bf16 ? panels::bf16_in_panel(3 * features) * std::int64_t{sizeof(std::uint16_t)}
              : panels::floats_in_panel(3 * features) * std::int64_t{sizeof(float)};
}

struct Heads {
  Product product;                   // prepared; its rows: all queries, all keys, all values
  panel_attention::Problem problem;  // of all heads; qkv and panel_stride are each task's own
  bool bf16 = false;                 // else floats
  panel_attention::Attend attend = nullptr;
  std::int64_t attention_scratch = 0;  // bytes
  const std::vector<Sequence>* sequences = nullptr;
  std::shared_ptr<const Ending> ending;  // of the results, in parts of one head; or null

  // Whether a head's rows are whole row groups of the layout.
  static bool suit(const Linear& linear, const Variant& variant, std::int64_t head_size);

  std::int64_t scratch_bytes() const;
  void run(std::int64_t head, char* scratch, const token_ops::Kernels& ops) const;

 private:
  std::int64_t panel_bytes() const;
  void project(std::int64_t head, char* qkv, char* scratch, const token_ops::Kernels& ops) const;
};

}  // namespace sparse_runtime::encoder
