// Turns recorded operations into stages over tasks.
#include <algorithm>

#include "core/panels.h"
#include "cpu/encoder/forward.h"
#include "cpu/encoder/product.h"

namespace sparse_runtime::encoder {

namespace {

constexpr int kSlots = panels::kSlots;

}  // namespace

void Forward::plan(const Node& node) {
  switch (node.op) {
    case Op::kEmbed:
      return plan_embed(node);
    case Op::kFromRows:
      return plan_from_rows(node);
    case Op::kLinear:
      return plan_linear(node);
    case Op::kAttention:
      return plan_attention(node);
    case Op::kToRows:
      return plan_to_rows(node);
  }
}

void Forward::plan_embed(const Node& node) {
  const std::int64_t features = values_[node.y].features;
  float* floats = take_floats(features);
  const std::int64_t tasks = (tokens_ + panels::kVector - 1) / panels::kVector;
  // Of the pending nodes, which outlive the stages.
  const auto* tables = &node.tables;
  const auto* ids = &node.ids;
  add_stage("embed", tasks, [=](std::int64_t task, int) {
    const std::int64_t first = task * panels::kVector;
    const std::int64_t panel = first / filled_;
    const float* rows[token_ops::kMostTables];
    const std::int64_t* own_ids[token_ops::kMostTables];
    for (std::size_t i = 0; i < ids->size(); ++i) {
      rows[i] = (*tables)[i].data;
      own_ids[i] = (*ids)[i] + first;
    }
    token_ops::Embed embed = {};
    embed.tables = rows;
    embed.ids = own_ids;
    embed.count = static_cast<int>(tables->size());
    embed.tokens = static_cast<int>(std::min<std::int64_t>(panels::kVector, tokens_ - first));
    embed.features = features;
    embed.vector = static_cast<int>(first % filled_ / panels::kVector);
    embed.y = floats + panel * panels::floats_in_panel(features);
    ops_.embed(embed);
  });
  end_apart(node.y, floats, node.norm, "embed");
}

std::int64_t Forward::columns_of_task(std::int64_t features) const {
  constexpr std::int64_t kFewest = 256;
  if (many_panels()) return features;
  const std::int64_t parts = (3 * num_threads_ + panels_ - 1) / panels_;
  const std::int64_t width = (features + parts - 1) / parts;
  return std::max(kFewest, (width + kSlots - 1) / kSlots * kSlots);
}

void Forward::plan_from_rows(const Node& node) {
  const std::int64_t features = values_[node.y].features;
  float* floats = take_floats(features);
  const float* rows = node.rows_in;
  const std::int64_t stride = node.stride;
  const std::int64_t width = columns_of_task(features);
  const std::int64_t parts = (features + width - 1) / width;
  add_stage("from rows", panels_ * parts, [=](std::int64_t task, int) {
    const std::int64_t panel = task / parts, first = task % parts * width;
    ops_.from_rows(rows + panel * filled_ * stride + first, stride,
                   std::min(width, features - first), static_cast<int>(tokens_of(panel)),
                   floats + panel * panels::floats_in_panel(features) + first * kSlots);
  });
  end_apart(node.y, floats, node.norm, "from rows");
}

void Forward::plan_to_rows(const Node& node) {
  const std::int64_t features = values_[node.x].features;
  const float* floats = static_cast<const float*>(shape_of(node.x, {Form::Kind::kFloats}).data);
  float* rows = node.rows_out;
  const std::int64_t stride = node.stride;
  const std::int64_t width = columns_of_task(features);
  const std::int64_t parts = (features + width - 1) / width;
  add_stage("to rows", panels_ * parts, [=](std::int64_t task, int) {
    const std::int64_t panel = task / parts, first = task % parts * width;
    ops_.to_rows(floats + panel * panels::floats_in_panel(features) + first * kSlots,
                 std::min(width, features - first), static_cast<int>(tokens_of(panel)),
                 rows + panel * filled_ * stride + first, stride);
  });
  done_reading(node.x);
}

Product Forward::product_of(const Node& node) {
  Product product;
  product.linear = node.linear;
  product.variant = &node.linear->variant_for(tokens_);
  product.activation = node.activation;
  const Shape input = shape_of(node.x, form_for(*node.linear));
  product.x = static_cast<const char*>(input.data);
  product.x_scale = input.scale;
  product.zero_points = input.zero_points;
  return product;
}

void Forward::plan_linear(const Node& node) {
  const Linear& linear = *node.linear;
  Product product = product_of(node);
  if (node.residual != kNoValue) {
    product.residual =
        static_cast<const float*>(shape_of(node.residual, {Form::Kind::kFloats}).data);
  }

  const Value& out = values_[node.y];
  product.coarse = linear.finite && node.norm == nullptr && !wants(out, Form::Kind::kFloats);
  const bool floats = node.norm != nullptr || wants(out, Form::Kind::kFloats) ||
                      wants(out, Form::Kind::kBytes) || wants(out, Form::Kind::kPairs);
  if (wants(out, Form::Kind::kAttentionBf16)) {
    product.bf16 =
        static_cast<std::uint16_t*>(add_shape(node.y, {Form::Kind::kAttentionBf16}).data);
  }
  product.prepare(isa_, panels_, num_threads_, vectors_of(0), vectors_of(panels_ - 1));
  std::shared_ptr<Ending> ending;
  if (floats) {
    product.keeps_floats = product.row_tasks == 1 && !wants(out, Form::Kind::kFloats);
    // A sum takes the residual's place, where the cache has it: a task reads the rows that it
    // writes, and no others.
    if (!product.keeps_floats) {
      if (node.residual != kNoValue) product.floats = take_over(node.residual);
      if (product.floats == nullptr) product.floats = take_floats(linear.n);
    }
    ending = begin_ending(node.y, product.floats, node.norm, product.tiling.task_rows);
    if (ending != nullptr) ending->group = product.tiling.panels;
    product.ending = ending;
    product.ends_panels = ending != nullptr && product.row_tasks == 1;
  }
  need_scratch(product.scratch_bytes());
  const token_ops::Kernels* ops = &ops_;
  add_stage(linear.name, product.row_tasks * product.panel_tasks,
            [this, product, ops](std::int64_t task, int worker) {
              product.run(task, worker_scratch(worker), *ops);
            });
  done_reading(node.x);
  if (node.residual != kNoValue) done_reading(node.residual);
  if (!floats) return;
  if (ending != nullptr && !product.ends_panels) end_by_parts(ending, true, linear.name);
  close_ending(node.y, product.floats, ending);
}

std::shared_ptr<Ending> Forward::begin_ending(ValueId y, float* floats,
                                              std::shared_ptr<const Norm> norm,
                                              std::int64_t part_rows) {
  auto ending = std::make_shared<Ending>();
  for (const Form& form : values_[y].wanted) {
    if (form.kind != Form::Kind::kBytes && form.kind != Form::Kind::kPairs) continue;
    if (find_shape(y, form) == nullptr) ending->shapes.push_back(add_shape(y, form));
  }
  if (norm == nullptr && ending->shapes.empty()) return nullptr;
  ending->ops = &ops_;
  ending->floats = floats;
  ending->features = values_[y].features;
  ending->panels = panels_;
  ending->vectors = vectors_of(0);
  ending->last_vectors = vectors_of(panels_ - 1);
  ending->norm = std::move(norm);
  ending->part_rows = part_rows;
  ending->parts = (ending->features + part_rows - 1) / part_rows;
  const auto bytes = static_cast<std::size_t>(Ending::statistics_floats(panels_, ending->parts) *
                                              std::int64_t{sizeof(float)});
  if (ending->takes_moments()) ending->moments = static_cast<float*>(workspace_->take(bytes));
  ending->ranges = static_cast<float*>(workspace_->take(bytes));
  return ending;
}

void Forward::end_by_parts(const std::shared_ptr<Ending>& ending, bool first_done,
                           const std::string& label) {
  const std::int64_t groups = (panels_ + ending->group - 1) / ending->group;
  const auto add = [&](const char* what, auto step, std::int64_t joined = 1) {
    const std::int64_t parts = (ending->parts + joined - 1) / joined;
    add_stage(label + what, groups * parts, [ending, parts, step](std::int64_t task, int) {
      const std::int64_t first = task / parts * ending->group;
      const std::int64_t end = std::min(first + ending->group, ending->panels);
      for (std::int64_t panel = first; panel < end; ++panel) {
        step(*ending, panel, task % parts, ending->floats_of(panel));
      }
    });
  };
  using std::int64_t;
  if (!first_done && ending->takes_moments()) {
    add(" (moments)", [](const Ending& e, int64_t panel, int64_t part, float* x) {
      e.moments_of(panel, part, x);
    });
  } else if (!first_done && !ending->norm && ending->needs_range()) {
    add(" (range)",
        [](const Ending& e, int64_t panel, int64_t part, float* x) { e.range_of(panel, part, x); });
  }
  if (ending->norm) {
    add(" (norm)", [](const Ending& e, int64_t panel, int64_t part, float* x) {
      e.normalize(panel, part, x);
    });
  }
  if (!ending->shapes.empty()) {
    add(
        " (quantize)",
        [](const Ending& e, int64_t panel, int64_t part, float* x) { e.convert(panel, part, x); },
        ending->joined);
  }
}

void Forward::end_whole(const std::shared_ptr<Ending>& ending, const std::string& label) {
  add_stage(label + " (ending)", panels_, [ending](std::int64_t panel, int) {
    ending->whole(panel, false, ending->floats_of(panel));
  });
}

void Forward::end_apart(ValueId y, float* floats, std::shared_ptr<const Norm> norm,
                        const std::string& label) {
  const std::int64_t features = values_[y].features;
  std::int64_t part_rows = std::max<std::int64_t>(features, 1);
  if (!many_panels()) {
    const std::int64_t wanted = std::max<std::int64_t>(1, 4 * num_threads_ / panels_);
    part_rows = panels::padded_features((features + wanted - 1) / wanted);
  }
  const std::shared_ptr<Ending> ending = begin_ending(y, floats, std::move(norm), part_rows);
  if (ending != nullptr && ending->parts == 1) {
    end_whole(ending, label);
  } else if (ending != nullptr) {
    end_by_parts(ending, false, label);
  }
  close_ending(y, floats, ending);
}

void Forward::close_ending(ValueId y, float* floats, const std::shared_ptr<Ending>& ending) {
  if (ending != nullptr) {
    if (ending->moments != nullptr) workspace_->give(ending->moments);
    workspace_->give(ending->ranges);
  }
  if (find_shape(y, {Form::Kind::kFloats}) != nullptr) return;
  if (wants(values_[y], Form::Kind::kFloats)) {
    Shape shape;
    shape.data = floats;
    values_[y].shapes.push_back(shape);
  } else if (floats != nullptr) {
    workspace_->give(floats);
  }
}

}  // namespace sparse_runtime::encoder
