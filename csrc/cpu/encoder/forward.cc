// Recording, memory and the run. plan.cc and plan_attention.cc turn what was recorded into stages.
#include "cpu/encoder/forward.h"

#include <algorithm>
#include <stdexcept>

#include "core/panels.h"

namespace sparse_runtime::encoder {

namespace {

std::int64_t sum_of_lengths(const std::vector<Sequence>& sequences) {
  std::int64_t tokens = 0;
  for (const Sequence& sequence : sequences) tokens += sequence.length;
  return tokens;
}

}  // namespace

Forward::Forward(std::vector<Sequence> sequences, int num_threads, Isa isa,
                 std::shared_ptr<WorkspacePool> pool, bool far_cores)
    : sequences_(std::move(sequences)),
      tokens_(sum_of_lengths(sequences_)),
      num_threads_(num_threads),
      isa_(isa),
      ops_(token_ops::kernels_for(isa)),
      far_cores_(far_cores),
      pool_(std::move(pool)),
      workspace_(pool_->take()) {}

Forward::~Forward() {
  for (Value& value : values_) drop_shapes(value);
  pool_->give(std::move(workspace_));
}

ValueId Forward::new_value(std::int64_t features) {
  values_.emplace_back();
  values_.back().features = features;
  return values_.size() - 1;
}

void Forward::read_by(ValueId x, const Form& form) {
  Value& value = values_[x];
  ++value.readers;
  if (std::find(value.wanted.begin(), value.wanted.end(), form) == value.wanted.end()) {
    value.wanted.push_back(form);
  }
}

Form Forward::form_for(const Linear& linear) const {
  const Variant& variant = linear.variant_for(tokens_);
  if (variant.int8) {
    return {Form::Kind::kBytes, int8_panels::reads_plain(variant.int8->layout),
            linear.quantization};
  }
  return {float_panels::reads_pairs(variant.floats->layout) ? Form::Kind::kPairs
                                                            : Form::Kind::kFloats};
}

ValueId Forward::embed(std::vector<Table> tables, std::vector<const std::int64_t*> ids,
                       std::int64_t features, std::shared_ptr<const Norm> norm_or_null) {
  Node node{Op::kEmbed};
  node.tables = std::move(tables);
  node.ids = std::move(ids);
  node.norm = std::move(norm_or_null);
  node.y = new_value(features);
  pending_.push_back(std::move(node));
  return pending_.back().y;
}

ValueId Forward::from_rows(const float* rows, std::int64_t stride, std::int64_t features,
                           std::shared_ptr<const Norm> norm_or_null) {
  Node node{Op::kFromRows};
  node.rows_in = rows;
  node.norm = std::move(norm_or_null);
  node.stride = stride;
  node.y = new_value(features);
  pending_.push_back(std::move(node));
  return pending_.back().y;
}

ValueId Forward::linear(ValueId x, std::shared_ptr<const Linear> linear,
                        token_ops::Activation activation, ValueId residual,
                        std::shared_ptr<const Norm> norm_or_null) {
  Node node{Op::kLinear};
  read_by(x, form_for(*linear));
  if (residual != kNoValue) read_by(residual, {Form::Kind::kFloats});
  node.x = x;
  node.residual = residual;
  node.activation = activation;
  node.y = new_value(linear->n);
  const Variant& variant = linear->variant_for(tokens_);
  const bool reduced = variant.int8 || float_panels::reads_pairs(variant.floats->layout);
  values_[node.y].attention_bf16 = reduced && norm_or_null == nullptr;
  node.linear = std::move(linear);
  node.norm = std::move(norm_or_null);
  pending_.push_back(std::move(node));
  return pending_.back().y;
}

ValueId Forward::attention(ValueId qkv, std::int64_t heads, float scale, const float* bias,
                           std::int64_t span,
                           std::shared_ptr<const panel_attention::Quantizers> quantizers) {
  Node node{Op::kAttention};
  const std::int64_t features = values_[qkv].features / 3;
  // Tiles take 32 features: those beyond a head must be queries or keys of the same tokens.
  const std::int64_t head_size = features / heads;
  const std::int64_t most_terms = std::max(head_size, longest_sequence());
  if (quantizers != nullptr && most_terms > panel_attention::kMostInt8Terms) {
    throw std::invalid_argument("attention: quantizers: expected at most " +
                                std::to_string(panel_attention::kMostInt8Terms) +
                                " tokens a sequence and features a head, that sums stay within 32 "
                                "bits; got " +
                                std::to_string(most_terms));
  }
  const bool even = head_size % 2 == 0 && (head_size % 32 == 0 || features >= 32);
  const bool bf16 = quantizers == nullptr && even && values_[qkv].attention_bf16 &&
                    find_shape(qkv, {Form::Kind::kFloats}) == nullptr &&
                    panel_attention::attend_for(isa_, panel_attention::Form::kBf16) != nullptr;
  read_by(qkv, {bf16 ? Form::Kind::kAttentionBf16 : Form::Kind::kFloats});
  node.x = qkv;
  node.heads = heads;
  node.scale = scale;
  node.bias = bias;
  node.span = span;
  node.quantizers = std::move(quantizers);
  node.y = new_value(features);
  pending_.push_back(std::move(node));
  return pending_.back().y;
}

void Forward::to_rows(ValueId x, float* rows, std::int64_t stride) {
  Node node{Op::kToRows};
  read_by(x, {Form::Kind::kFloats});
  node.x = x;
  node.rows_out = rows;
  node.stride = stride;
  pending_.push_back(std::move(node));
}

void Forward::release(ValueId x) {
  Value& value = values_[x];
  value.held = false;
  if (value.readers == 0) drop_shapes(value);
}

void Forward::run(StageTimes* times) {
  if (!has_run_) lay_out_panels();
  has_run_ = true;
  stages_.clear();
  scratch_bytes_ = 0;
  stages_.reserve(3 * pending_.size());
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    if (i + 1 < pending_.size() && goes_by_heads(pending_[i], pending_[i + 1])) {
      plan_heads(pending_[i], pending_[i + 1]);
      ++i;
    } else {
      plan(pending_[i]);
    }
  }
  scratch_bytes_ = (scratch_bytes_ + 63) / 64 * 64;
  // Not a block: those that planning has given back are still read by the stages.
  scratch_ = workspace_->scratch(static_cast<std::size_t>(scratch_bytes_) * num_threads_);
  std::vector<double> seconds(times == nullptr ? 0 : stages_.size());
  run_stages(stages_, num_threads_, times == nullptr ? nullptr : seconds.data());
  for (std::size_t s = 0; s < seconds.size(); ++s) {
    times->emplace_back(stages_[s].label, seconds[s]);
  }
  pending_.clear();
  stages_.clear();
}

std::shared_ptr<const Recording> Forward::recording(ValueId x) const {
  if (has_run_ || pending_.empty() || pending_.front().op != Op::kEmbed) return nullptr;
  const bool repeatable = std::all_of(pending_.begin() + 1, pending_.end(), [](const Node& node) {
    return node.op == Op::kLinear || (node.op == Op::kAttention && node.bias == nullptr);
  });
  if (!repeatable) return nullptr;
  auto recording = std::make_shared<Recording>();
  recording->nodes_ = pending_;
  recording->nodes_.front().ids.clear();
  recording->result_ = x;
  recording->features_ = features(x);
  recording->embedding_features_ = features(pending_.front().y);
  return recording;
}

void Forward::replay(const Recording& recording, std::vector<const std::int64_t*> ids, float* rows,
                     std::int64_t stride) {
  // Values are numbered in the order in which they are recorded, as they were the first time.
  const ValueId first = values_.size();
  const auto again = [first](ValueId id) { return id == kNoValue ? id : first + id; };
  for (const Node& node : recording.nodes_) {
    switch (node.op) {
      case Op::kEmbed:
        embed(node.tables, std::move(ids), recording.embedding_features_, node.norm);
        break;
      case Op::kLinear:
        linear(again(node.x), node.linear, node.activation, again(node.residual), node.norm);
        break;
      default:
        attention(again(node.x), node.heads, node.scale, nullptr, 0, node.quantizers);
    }
  }
  to_rows(again(recording.result_), rows, stride);
  for (ValueId id = first; id < values_.size(); ++id) release(id);
}

void Forward::check_span(std::int64_t span) const {
  for (const Sequence& sequence : sequences_) {
    if (sequence.position + sequence.length <= span) continue;
    throw std::invalid_argument("attention: span: expected at least " +
                                std::to_string(sequence.position + sequence.length) + "; got " +
                                std::to_string(span));
  }
}

std::int64_t Forward::longest_sequence() const {
  std::int64_t longest = 0;
  for (const Sequence& sequence : sequences_) longest = std::max(longest, sequence.length);
  return longest;
}

void Forward::done_reading(ValueId x) {
  Value& value = values_[x];
  --value.readers;
  if (value.readers == 0 && !value.held) drop_shapes(value);
}

void Forward::drop_shapes(Value& value) {
  // Stages run one after the other: one that is planned later may use the memory again.
  for (Shape& shape : value.shapes) {
    workspace_->give(shape.data);
    if (shape.scale != nullptr) workspace_->give(shape.scale);
    if (shape.zero_points != nullptr) workspace_->give(shape.zero_points);
  }
  value.shapes.clear();
}

bool Forward::wants(const Value& value, Form::Kind kind) const {
  if (kind == Form::Kind::kFloats && value.held) return true;
  return std::any_of(value.wanted.begin(), value.wanted.end(),
                     [kind](const Form& form) { return form.kind == kind; });
}

Shape* Forward::find_shape(ValueId x, const Form& form) {
  for (Shape& shape : values_[x].shapes) {
    if (shape.form == form) return &shape;
  }
  return nullptr;
}

Shape& Forward::add_shape(ValueId x, const Form& form) {
  Value& value = values_[x];
  Shape shape;
  shape.form = form;
  const auto bytes = [&](std::int64_t one_panel) {
    return static_cast<std::size_t>(one_panel * panels_);
  };
  switch (form.kind) {
    case Form::Kind::kFloats:
      shape.data = take_floats(value.features);
      break;
    case Form::Kind::kBytes:
      shape.data = workspace_->take(bytes(panels::bytes_in_panel(value.features)));
      shape.scale = static_cast<float*>(workspace_->take(bytes(panels::kSlots * sizeof(float))));
      shape.zero_points =
          static_cast<std::int32_t*>(workspace_->take(bytes(panels::kSlots * sizeof(float))));
      break;
    case Form::Kind::kPairs:
    case Form::Kind::kAttentionBf16:
      shape.data = workspace_->take(
          bytes(panels::bf16_in_panel(value.features) * std::int64_t{sizeof(std::uint16_t)}));
      break;
  }
  value.shapes.push_back(shape);
  return value.shapes.back();
}

Shape& Forward::shape_of(ValueId x, const Form& form) {
  Shape* found = find_shape(x, form);
  if (found != nullptr) return *found;
  auto* floats = static_cast<float*>(find_shape(x, {Form::Kind::kFloats})->data);
  std::vector<Form> wanted = std::move(values_[x].wanted);
  values_[x].wanted = {form};
  end_apart(x, floats, nullptr, "convert");
  values_[x].wanted = std::move(wanted);
  return *find_shape(x, form);
}

float* Forward::take_floats(std::int64_t features) {
  return static_cast<float*>(workspace_->take(
      static_cast<std::size_t>(panels::floats_in_panel(features) * panels_) * sizeof(float)));
}

float* Forward::take_over(ValueId x) {
  Value& value = values_[x];
  Shape* floats = find_shape(x, {Form::Kind::kFloats});
  if (floats == nullptr || value.held || value.readers > 1) return nullptr;
  auto* taken = static_cast<float*>(floats->data);
  value.shapes.erase(value.shapes.begin() + (floats - value.shapes.data()));
  return taken;
}

int Forward::vectors_of(std::int64_t panel) const {
  const std::int64_t tokens = tokens_of(panel);
  return static_cast<int>((tokens + panels::kVector - 1) / panels::kVector);
}

std::int64_t Forward::tokens_of(std::int64_t panel) const {
  return std::min(filled_, tokens_ - panel * filled_);
}

// Values of the first run are read by later ones, so it decides for all.
void Forward::lay_out_panels() {
  // The tiles of AMX, also attention's, are of whole panels.
  bool suits = far_cores_ && isa_ != Isa::kAmx;
  bool attends = false;
  for (const Node& node : pending_) {
    attends = attends || node.op == Op::kAttention;
    if (node.op != Op::kLinear) continue;
    const Variant& variant = node.linear->variant_for(tokens_);
    suits = suits && variant.int8 && int8_panels::suits_fewer_vectors(variant.int8->layout);
  }
  filled_ = suits && attends ? filled_slots(tokens_, num_threads_) : panels::kSlots;
  panels_ = panels::panel_count(tokens_, filled_);
}

void Forward::need_scratch(std::int64_t bytes) {
  scratch_bytes_ = std::max(scratch_bytes_, bytes);
}

void Forward::add_stage(std::string label, std::int64_t tasks,
                        std::function<void(std::int64_t, int)> run) {
  stages_.push_back({std::move(label), tasks, std::move(run)});
}

}  // namespace sparse_runtime::encoder
