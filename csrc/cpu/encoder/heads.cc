#include "cpu/encoder/heads.h"

#include "core/panels.h"

namespace sparse_runtime::encoder {
namespace {

constexpr int kSlots = panels::kSlots;

}  // namespace

bool Heads::suit(const Linear& linear, const Variant& variant, std::int64_t head_size) {
  return linear.w_zero_points.empty() && !is_tiled(variant) &&
         head_size % row_group_of(linear, variant) == 0;
}

std::int64_t Heads::panel_bytes() const {
  return bytes_of_qkv(problem.head_size, bf16);
}

// [a product's][queries, keys and values of the head][attention's]
std::int64_t Heads::scratch_bytes() const {
  return Product::rows_scratch_bytes(problem.head_size) + product.panels * panel_bytes() +
         attention_scratch;
}

void Heads::run(std::int64_t head, char* scratch, const token_ops::Kernels& ops) const {
  char* qkv = scratch + Product::rows_scratch_bytes(problem.head_size);
  project(head, qkv, scratch, ops);
  panel_attention::Problem own = problem;
  own.qkv = qkv;
  own.panel_stride = panel_bytes();
  own.heads = 1;
  own.out += head * problem.head_size * kSlots;
  if (own.bias != nullptr) own.bias += head * own.span * own.span;
  for (const Sequence& sequence : *sequences) {
    panel_attention::Call call = {};
    call.start = sequence.start;
    call.length = sequence.length;
    call.bias_start = sequence.position;
    call.queries = sequence.length;
    call.scratch = qkv + product.panels * panel_bytes();
    attend(own, call);
  }
  if (ending == nullptr || !ending->needs_range()) return;
  for (std::int64_t panel = 0; panel < product.panels; ++panel) {
    ending->range_of(panel, head, ending->floats_of(panel));
  }
}

// A part's weights stay in the cache while the panels pass.
void Heads::project(std::int64_t head, char* qkv, char* scratch,
                    const token_ops::Kernels& ops) const {
  const std::int64_t size = problem.head_size;
  for (int part = 0; part < 3; ++part) {
    const std::int64_t row = (part * problem.heads + head) * size;
    const std::int64_t at = part * size * kSlots;
    for (std::int64_t panel = 0; panel < product.panels; ++panel) {
      Product::Rows rows = {row, size, panel};
      char* own = qkv + panel * panel_bytes();
      if (!bf16) {
        rows.floats = reinterpret_cast<float*>(own) + at;
      } else if (part < 2) {
        rows.pairs = reinterpret_cast<std::uint16_t*>(own) + at;
      } else {
        rows.halves = reinterpret_cast<std::uint16_t*>(own) + at;
      }
      product.run_rows(rows, scratch, ops);
    }
  }
}

}  // namespace sparse_runtime::encoder
