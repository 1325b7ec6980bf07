#include "bindings/panel_attention.h"

#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "bindings/checks.h"
#include "bindings/gil.h"
#include "core/aligned.h"
#include "core/panels.h"
#include "cpu/int8_panels/int8_panels.h"
#include "cpu/panel_attention/panel_attention.h"

namespace py = pybind11;

namespace sparse_runtime::bindings {
namespace {

using panel_attention::Form;
using std::int64_t;
using std::uintptr_t;

Form form_of(const Checks& checks, const std::string& name) {
  if (name == "float") return Form::kFloat;
  if (name == "bf16") return Form::kBf16;
  if (name == "int8") return Form::kInt8;
  checks.fail("form", "float, bf16 or int8", "\"" + name + "\"");
}

bool runs(const std::string& form, const std::string& isa) {
  const Checks checks("panel_attention_runs");
  return panel_attention::attend_for(resolve_isa(isa), form_of(checks, form)) != nullptr;
}

using Given = std::tuple<float, int, int, int>;  // scale, zero point, least and largest level

panel_attention::Quantizer quantizer_of(const Checks& checks, const char* name,
                                        const Given& given) {
  const auto [scale, zero_point, low, high] = given;
  if (!(scale > 0.0f && std::isfinite(scale))) {
    checks.fail(name, "a positive finite scale", std::to_string(scale));
  }
  checks.range(name, low, -128, 0);
  checks.range(name, high, 0, low < 0 ? 127 : 255);
  checks.range(name, zero_point, low, high);
  return {scale, zero_point, low, high};
}

std::shared_ptr<panel_attention::Quantizers> quantizers_of(const Given& query, const Given& key,
                                                           const Given& probabilities,
                                                           const Given& value,
                                                           const std::optional<Given>& scores,
                                                           const std::optional<Given>& context) {
  const Checks checks("AttentionQuantizers");
  auto made = std::make_shared<panel_attention::Quantizers>();
  made->query = quantizer_of(checks, "query", query);
  made->key = quantizer_of(checks, "key", key);
  made->probabilities = quantizer_of(checks, "probabilities", probabilities);
  made->value = quantizer_of(checks, "value", value);
  if (scores) made->scores = quantizer_of(checks, "scores", *scores);
  if (context) made->context = quantizer_of(checks, "context", *context);
  return made;
}

// One head of one sequence; for tests and benchmarks.
void attend(const std::string& form, uintptr_t qkv_ptr, int64_t tokens, int64_t heads,
            int64_t head_size, float scale, uintptr_t bias_ptr, int64_t span, uintptr_t out_ptr,
            int64_t head, int64_t start, int64_t length, int64_t bias_start, int64_t query,
            int64_t queries, const std::string& isa,
            const std::shared_ptr<panel_attention::Quantizers>& quantizers, int64_t filled) {
  const Checks checks("panel_attention");
  const Form chosen = form_of(checks, form);
  checks.range("tokens", tokens, 1, int64_t{1} << 30);
  checks.range("heads", heads, 1, 1 << 16);
  checks.range("head_size", head_size, 1, 1 << 16);
  checks.range("head", head, 0, heads - 1);
  checks.range("start", start, 0, tokens - 1);
  checks.range("length", length, 1, tokens - start);
  checks.range("query", query, 0, length - 1);
  checks.range("queries", queries, 1, length - query);
  const Isa set = resolve_isa(isa);
  const bool whole = set == Isa::kAmx && chosen != Form::kInt8;
  checks.range("filled", filled, whole ? panels::kSlots : panels::kVector, panels::kSlots);
  if ((filled & (filled - 1)) != 0) {
    checks.fail("filled", "16, 32 or 64", std::to_string(filled));
  }
  const int64_t features = heads * head_size, panels = panels::panel_count(tokens, filled);
  panel_attention::Problem problem = {};
  problem.panel_stride = chosen == Form::kBf16 ? panels::bf16_in_panel(3 * features) * 2
                                               : panels::floats_in_panel(3 * features) * 4;
  problem.qkv = checks.pointer<const char>("qkv_ptr", qkv_ptr, problem.panel_stride * panels);
  problem.filled = filled;
  problem.heads = heads;
  problem.head_size = head_size;
  problem.scale = scale;
  if (bias_ptr != 0) {
    checks.range("span", span, bias_start + length, 1 << 20);
    problem.bias = checks.pointer<const float>("bias_ptr", bias_ptr, heads * span * span * 4);
    problem.span = span;
  }
  problem.out_stride = panels::floats_in_panel(features);
  problem.out = checks.pointer<float>("out_ptr", out_ptr, problem.out_stride * panels * 4);
  const auto kernel = panel_attention::attend_for(set, chosen);
  if (kernel == nullptr) {
    throw std::runtime_error("panel_attention: form " + form +
                             " has no kernel for instruction set " + isa);
  }
  if ((chosen == Form::kInt8) != (quantizers != nullptr)) {
    checks.fail("quantizers", "some with form int8 and none with others", form);
  }
  if (chosen == Form::kInt8) {
    checks.range("length", length, 1, panel_attention::kMostInt8Terms);
    checks.range("head_size", head_size, 1, panel_attention::kMostInt8Terms);
    problem.quantizers = quantizers.get();
    problem.accumulate = int8_panels::accumulate_for(set, int8_panels::Layout::kDense);
  }
  const WithoutGil without_gil;
  AlignedVector<char> scratch(
      static_cast<std::size_t>(panel_attention::scratch_bytes(set, chosen, head_size)));
  kernel(problem, {head, start, length, bias_start, query, queries, scratch.data()});
}

}  // namespace

void bind_panel_attention(py::module_& m) {
  using py::arg;
  py::class_<panel_attention::Quantizers, std::shared_ptr<panel_attention::Quantizers>>(
      m, "AttentionQuantizers")
      .def(py::init(&quantizers_of), arg("query"), arg("key"), arg("probabilities"), arg("value"),
           arg("scores"), arg("context"));
  m.attr("ATTENTION_MAX_INT8_TERMS") = panel_attention::kMostInt8Terms;
  m.def("panel_attention_runs", &runs, arg("form"), arg("isa") = "auto");
  m.def("panel_attention", &attend, arg("form"), arg("qkv_ptr"), arg("tokens"), arg("heads"),
        arg("head_size"), arg("scale"), arg("bias_ptr"), arg("span"), arg("out_ptr"), arg("head"),
        arg("start"), arg("length"), arg("bias_start"), arg("query"), arg("queries"), arg("isa"),
        arg("quantizers") = nullptr, arg("filled") = panels::kSlots);
}

}  // namespace sparse_runtime::bindings
