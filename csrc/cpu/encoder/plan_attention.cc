// Turns recorded attention into stages, together with the layer before it where tokens are few.
#include <algorithm>

#include "core/panels.h"
#include "cpu/encoder/forward.h"
#include "cpu/encoder/heads.h"
#include "cpu/encoder/tiling.h"

namespace sparse_runtime::encoder {

namespace {

constexpr int kSlots = panels::kSlots;

}  // namespace

panel_attention::Problem Forward::problem_of(const Node& node) const {
  const std::int64_t features = values_[node.y].features;
  panel_attention::Problem problem = {};
  problem.filled = filled_;
  problem.heads = node.heads;
  problem.head_size = features / node.heads;
  problem.scale = node.scale;
  problem.bias = node.bias;
  problem.span = node.span;
  problem.out_stride = panels::floats_in_panel(features);
  problem.quantizers = node.quantizers.get();  // of the pending nodes, which outlive the stages
  problem.accumulate = int8_panels::accumulate_for(isa_, int8_panels::Layout::kDense);
  return problem;
}

bool Forward::goes_by_heads(const Node& qkv, const Node& attention) const {
  if (qkv.op != Op::kLinear || attention.op != Op::kAttention || attention.x != qkv.y) return false;
  const Value& value = values_[qkv.y];
  const bool alone = value.readers == 1 && !value.held && qkv.norm == nullptr &&
                     qkv.residual == kNoValue && attention.quantizers == nullptr;
  // Of more panels, each stays with its thread, and reading all of them would cost more.
  constexpr std::int64_t kFewForOne = 6;
  const bool few = num_threads_ > 1 ? 2 * panels_ <= 3 * num_threads_ : panels_ <= kFewForOne;
  const std::int64_t head_size = values_[attention.y].features / attention.heads;
  return alone && few && isa_ != Isa::kAmx && shares_evenly(attention.heads, num_threads_) &&
         Heads::suit(*qkv.linear, qkv.linear->variant_for(tokens_), head_size);
}

void Forward::plan_heads(const Node& qkv, const Node& attention) {
  Heads heads;
  heads.product = product_of(qkv);
  heads.product.prepare(isa_, panels_, num_threads_, vectors_of(0), vectors_of(panels_ - 1));
  heads.problem = problem_of(attention);
  heads.problem.out = take_floats(values_[attention.y].features);
  heads.bf16 = wants(values_[qkv.y], Form::Kind::kAttentionBf16);
  const auto form = heads.bf16 ? panel_attention::Form::kBf16 : panel_attention::Form::kFloat;
  heads.attend = panel_attention::attend_for(isa_, form);
  heads.attention_scratch = panel_attention::scratch_bytes(isa_, form, heads.problem.head_size);
  heads.sequences = &sequences_;
  const std::shared_ptr<Ending> ending =
      begin_ending(attention.y, heads.problem.out, nullptr, heads.problem.head_size);
  heads.ending = ending;
  need_scratch(heads.scratch_bytes());
  const token_ops::Kernels* ops = &ops_;
  add_stage(qkv.linear->name + " + attention", attention.heads,
            [this, heads, ops](std::int64_t head, int worker) {
              heads.run(head, worker_scratch(worker), *ops);
            });
  // Only now: the stage writes ranges while it reads x.
  done_reading(qkv.x);
  done_reading(attention.x);
  if (ending != nullptr) {
    ending->group = panels_;  // what a core made it reads, where heads are whole blocks
    ending->joined = heads.problem.head_size % panels::kFeatureBlock == 0 ? 1 : 2;
    end_by_parts(ending, true, "attention");
  }
  close_ending(attention.y, heads.problem.out, ending);
}

void Forward::plan_attention(const Node& node) {
  const bool bf16 =
      node.quantizers == nullptr && find_shape(node.x, {Form::Kind::kAttentionBf16}) != nullptr;
  const Shape qkv = shape_of(node.x, {bf16 ? Form::Kind::kAttentionBf16 : Form::Kind::kFloats});
  panel_attention::Problem problem = problem_of(node);
  problem.qkv = qkv.data;
  problem.panel_stride = bytes_of_qkv(values_[node.y].features, bf16);
  problem.out = take_floats(values_[node.y].features);
  using AttentionForm = panel_attention::Form;
  const AttentionForm unreduced =
      node.quantizers == nullptr ? AttentionForm::kFloat : AttentionForm::kInt8;
  const AttentionForm form = bf16 ? AttentionForm::kBf16 : unreduced;
  const auto attend = panel_attention::attend_for(isa_, form);
  const std::int64_t longest = longest_sequence();
  need_scratch(panel_attention::scratch_bytes(isa_, form, problem.head_size));
  // A call is one head of one sequence. Many short ones share a task; where there are few long
  // ones, each is cut by its queries.
  const auto sequences = static_cast<std::int64_t>(sequences_.size());
  const std::int64_t calls = sequences * node.heads;
  const std::int64_t heads_per_task =
      std::clamp<std::int64_t>(calls / (16 * num_threads_), 1, node.heads);
  const std::int64_t head_tasks = (node.heads + heads_per_task - 1) / heads_per_task;
  const std::int64_t wanted = num_threads_ == 1 ? 1 : 4 * num_threads_;
  const std::int64_t parts = std::clamp<std::int64_t>(
      (wanted + calls - 1) / calls, 1, std::max<std::int64_t>(1, longest / (2 * kSlots)));
  add_stage("attention", sequences * head_tasks * parts, [=](std::int64_t task, int worker) {
    const std::int64_t part = task % parts;
    const std::int64_t first_head = task / parts % head_tasks * heads_per_task;
    const Sequence& sequence = sequences_[static_cast<std::size_t>(task / parts / head_tasks)];
    panel_attention::Call call = {};
    call.start = sequence.start;
    call.length = sequence.length;
    call.bias_start = sequence.position;
    call.scratch = worker_scratch(worker);
    // Cuts at whole panels of the stream.
    const auto cut = [&](std::int64_t p) {
      if (p == 0) return std::int64_t{0};
      if (p == parts) return sequence.length;
      const std::int64_t at = sequence.start + sequence.length * p / parts;
      return std::clamp<std::int64_t>(at / filled_ * filled_ - sequence.start, 0, sequence.length);
    };
    call.query = cut(part);
    call.queries = cut(part + 1) - call.query;
    if (call.queries == 0) return;
    const std::int64_t end = std::min(problem.heads, first_head + heads_per_task);
    for (call.head = first_head; call.head < end; ++call.head) attend(problem, call);
  });
  done_reading(node.x);
  end_apart(node.y, problem.out, nullptr, "attention");
}

}  // namespace sparse_runtime::encoder
