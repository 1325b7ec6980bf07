#include "bindings/encoder.h"

#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/checks.h"
#include "bindings/gil.h"
#include "bindings/panel_layers.h"
#include "cpu/encoder/forward.h"

namespace py = pybind11;

namespace sparse_runtime::bindings {
namespace {

using encoder::Forward;
using encoder::Linear;
using encoder::Norm;
using encoder::Recording;
using encoder::Table;
using encoder::ValueId;
using encoder::WorkspacePool;
using std::int64_t;
using std::uintptr_t;

// A recorded value, by the forward pass that owns it; released when Python drops it.
class Value {
 public:
  Value(std::shared_ptr<Forward> forward, ValueId id) : forward_(std::move(forward)), id_(id) {}
  ~Value() {
    if (forward_ != nullptr) forward_->release(id_);
  }
  Value(Value&& other) noexcept = default;
  Value(const Value&) = delete;
  Value& operator=(const Value&) = delete;

  ValueId of(const Checks& checks, const char* argument,
             const std::shared_ptr<Forward>& forward) const {
    if (forward_ != forward) checks.fail(argument, "a value of this forward pass", "another's");
    return id_;
  }
  int64_t features() const { return forward_->features(id_); }

 private:
  std::shared_ptr<Forward> forward_;
  ValueId id_;
};

// A forward pass and the sizes that its arguments are checked against.
std::shared_ptr<Forward> make_forward(const std::vector<int64_t>& lengths,
                                      const std::vector<int64_t>& positions, int num_threads,
                                      const std::string& isa,
                                      const std::shared_ptr<WorkspacePool>& pool, bool far_cores) {
  const Checks checks("Forward");
  checks.range("num_threads", num_threads, 1, std::numeric_limits<int>::max());
  if (!positions.empty() && positions.size() != lengths.size()) {
    checks.fail("positions", "one a sequence or none", std::to_string(positions.size()));
  }
  std::vector<encoder::Sequence> sequences;
  sequences.reserve(lengths.size());
  int64_t tokens = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    checks.range("lengths", lengths[i], 1, kMaxTokens);
    const int64_t position = positions.empty() ? 0 : positions[i];
    checks.range("positions", position, 0, kMaxTokens);
    sequences.push_back({tokens, lengths[i], position});
    tokens += lengths[i];
    checks.range("lengths", tokens, 1, kMaxTokens);
  }
  if (sequences.empty()) checks.fail("lengths", "at least one sequence", "none");
  return std::make_shared<Forward>(std::move(sequences), num_threads, resolve_isa(isa), pool,
                                   far_cores);
}

void check_norm(const Checks& checks, const std::shared_ptr<Norm>& norm, int64_t features) {
  if (norm == nullptr || static_cast<int64_t>(norm->weight.size()) == features) return;
  checks.fail("norm", std::to_string(features) + " features", std::to_string(norm->weight.size()));
}

std::vector<const int64_t*> ids_at(const Checks& checks, const std::vector<Table>& tables,
                                   const std::vector<uintptr_t>& id_ptrs, int64_t tokens) {
  std::vector<const int64_t*> ids;
  for (std::size_t t = 0; t < tables.size(); ++t) {
    const auto* own = checks.pointer<const int64_t>("id_ptrs", id_ptrs[t], tokens * 8);
    for (int64_t i = 0; i < tokens; ++i) {
      if (own[i] >= 0 && own[i] < tables[t].rows) continue;
      throw py::index_error("embed: ids of table " + std::to_string(t) + ": expected 0.." +
                            std::to_string(tables[t].rows - 1) + ", got " + std::to_string(own[i]));
    }
    ids.push_back(own);
  }
  return ids;
}

Value embed(const std::shared_ptr<Forward>& forward, const std::vector<uintptr_t>& table_ptrs,
            const std::vector<int64_t>& table_rows, const std::vector<uintptr_t>& id_ptrs,
            int64_t features, const std::shared_ptr<Norm>& norm) {
  const Checks checks("embed");
  if (table_ptrs.empty() || table_ptrs.size() > token_ops::kMostTables ||
      table_ptrs.size() != table_rows.size() || table_ptrs.size() != id_ptrs.size()) {
    checks.fail("table_ptrs", "1 to 8 tables, each with its rows and ids",
                std::to_string(table_ptrs.size()));
  }
  checks.range("features", features, 1, kMaxFeatures);
  check_norm(checks, norm, features);
  std::vector<Table> tables;
  for (std::size_t t = 0; t < table_ptrs.size(); ++t) {
    checks.range("table_rows", table_rows[t], 1, kMaxFeatures);
    tables.push_back({checks.pointer<const float>("table_ptrs", table_ptrs[t],
                                                  table_rows[t] * features * kFloatBytes),
                      table_rows[t]});
  }
  std::vector<const int64_t*> ids = ids_at(checks, tables, id_ptrs, forward->tokens());
  return Value(forward, forward->embed(std::move(tables), std::move(ids), features, norm));
}

Value from_rows(const std::shared_ptr<Forward>& forward, uintptr_t rows_ptr, int64_t stride,
                int64_t features, const std::shared_ptr<Norm>& norm) {
  const Checks checks("from_rows");
  checks.range("features", features, 1, kMaxFeatures);
  const float* rows = rows_at(checks, "rows_ptr", rows_ptr, forward->tokens(), features, stride);
  check_norm(checks, norm, features);
  return Value(forward, forward->from_rows(rows, stride, features, norm));
}

Value linear(const std::shared_ptr<Forward>& forward, const Value& x,
             const std::shared_ptr<Linear>& layer, const std::string& activation,
             const Value* residual, const std::shared_ptr<Norm>& norm) {
  const Checks checks("linear");
  const ValueId x_id = x.of(checks, "x", forward);
  if (x.features() != layer->k) {
    checks.fail("x", std::to_string(layer->k) + " features", std::to_string(x.features()));
  }
  ValueId residual_id = encoder::kNoValue;
  if (residual != nullptr) {
    residual_id = residual->of(checks, "residual", forward);
    if (residual->features() != layer->n) {
      checks.fail("residual", std::to_string(layer->n) + " features",
                  std::to_string(residual->features()));
    }
  }
  check_norm(checks, norm, layer->n);
  return Value(forward,
               forward->linear(x_id, layer, activation_of(checks, activation), residual_id, norm));
}

Value attention(const std::shared_ptr<Forward>& forward, const Value& qkv, int64_t heads,
                float scale, uintptr_t bias_ptr, int64_t span,
                const std::shared_ptr<panel_attention::Quantizers>& quantizers) {
  const Checks checks("attention");
  const ValueId id = qkv.of(checks, "qkv", forward);
  checks.range("heads", heads, 1, qkv.features());
  if (qkv.features() % (3 * heads) != 0) {
    checks.fail("qkv", "three times heads times a whole head size",
                std::to_string(qkv.features()) + " features, " + std::to_string(heads) + " heads");
  }
  const float* bias = nullptr;
  if (bias_ptr != 0) {
    checks.range("span", span, 1, int64_t{1} << 20);
    bias = checks.pointer<const float>("bias_ptr", bias_ptr, heads * span * span * kFloatBytes);
    forward->check_span(span);
  }
  return Value(forward, forward->attention(id, heads, scale, bias, span, quantizers));
}

void to_rows(const std::shared_ptr<Forward>& forward, const Value& x, uintptr_t rows_ptr,
             int64_t stride) {
  const Checks checks("to_rows");
  const ValueId id = x.of(checks, "x", forward);
  rows_at(checks, "rows_ptr", rows_ptr, forward->tokens(), x.features(), stride);
  forward->to_rows(id, reinterpret_cast<float*>(rows_ptr), stride);
}

encoder::StageTimes run(Forward& forward, bool profile) {
  encoder::StageTimes times;
  {
    const WithoutGil without_gil;
    forward.run(profile ? &times : nullptr);
  }
  return times;
}

std::shared_ptr<const Recording> recording(const std::shared_ptr<Forward>& forward,
                                           const Value& x) {
  return forward->recording(x.of(Checks("recording"), "x", forward));
}

// A whole pass over other tokens.
encoder::StageTimes run_again(const Recording& recording, const std::vector<int64_t>& lengths,
                              const std::vector<uintptr_t>& id_ptrs, uintptr_t rows_ptr,
                              int64_t stride, int num_threads, const std::string& isa,
                              const std::shared_ptr<WorkspacePool>& pool, bool profile,
                              bool far_cores) {
  const Checks checks("Recording.run");
  const std::shared_ptr<Forward> forward =
      make_forward(lengths, {}, num_threads, isa, pool, far_cores);
  if (id_ptrs.size() != recording.tables().size()) {
    checks.fail("id_ptrs",
                "one for each of " + std::to_string(recording.tables().size()) + " tables",
                std::to_string(id_ptrs.size()));
  }
  std::vector<const int64_t*> ids = ids_at(checks, recording.tables(), id_ptrs, forward->tokens());
  rows_at(checks, "rows_ptr", rows_ptr, forward->tokens(), recording.features(), stride);
  encoder::StageTimes times;
  {
    const WithoutGil without_gil;
    forward->replay(recording, std::move(ids), reinterpret_cast<float*>(rows_ptr), stride);
    forward->run(profile ? &times : nullptr);
  }
  return times;
}

}  // namespace

void bind_encoder(py::module_& m) {
  using py::arg;
  bind_panel_layers(m);
  py::class_<Value>(m, "PanelValue").def_property_readonly("features", &Value::features);
  py::class_<Forward, std::shared_ptr<Forward>>(m, "Forward")
      .def(py::init(&make_forward), arg("lengths"), arg("positions"), arg("num_threads"),
           arg("isa"), arg("pool"), arg("far_cores") = false)
      .def("embed", &embed, arg("table_ptrs"), arg("table_rows"), arg("id_ptrs"), arg("features"),
           arg("norm"))
      .def("from_rows", &from_rows, arg("rows_ptr"), arg("stride"), arg("features"), arg("norm"))
      .def("linear", &linear, arg("x"), arg("layer"), arg("activation"), arg("residual"),
           arg("norm"))
      .def("attention", &attention, arg("qkv"), arg("heads"), arg("scale"), arg("bias_ptr") = 0,
           arg("span") = 0, arg("quantizers") = nullptr)
      .def("to_rows", &to_rows, arg("x"), arg("rows_ptr"), arg("stride"))
      .def("recording", &recording, arg("x"))
      .def("run", &run, arg("profile") = false);
  py::class_<Recording, std::shared_ptr<Recording>>(m, "Recording")
      .def_property_readonly("features", &Recording::features)
      .def("run", &run_again, arg("lengths"), arg("id_ptrs"), arg("rows_ptr"), arg("stride"),
           arg("num_threads"), arg("isa"), arg("pool"), arg("profile") = false,
           arg("far_cores") = false);
}

}  // namespace sparse_runtime::bindings
