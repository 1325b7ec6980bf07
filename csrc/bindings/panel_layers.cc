#include "bindings/panel_layers.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/gil.h"
#include "cpu/encoder/forward.h"

namespace py = pybind11;

namespace sparse_runtime::bindings {

token_ops::Activation activation_of(const Checks& checks, const std::string& name) {
  using token_ops::Activation;
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  if (name == "tanh") return Activation::kTanh;
  checks.fail("activation", "one of none, relu, gelu, gelu_new, silu, tanh", "\"" + name + "\"");
}

const float* rows_at(const Checks& checks, const char* argument, std::uintptr_t address,
                     std::int64_t tokens, std::int64_t features, std::int64_t stride) {
  return checks.pointer<const float>(
      argument, address, checks.matrix_bytes("stride", tokens, features, stride, kFloatBytes));
}

namespace {

using encoder::Forward;
using encoder::Linear;
using encoder::Norm;
using encoder::ValueId;
using encoder::WorkspacePool;
using std::int64_t;
using std::uintptr_t;

// |x - zero point| and |w - zero point| are at most 255, and a sum of products below 2^31.
constexpr int64_t kMaxInputsWithZeroPoints = std::numeric_limits<std::int32_t>::max() / (255 * 255);

AlignedVector<float> floats_at(const Checks& checks, const char* argument, uintptr_t address,
                               int64_t count) {
  const auto* from = checks.pointer<const float>(argument, address, count * kFloatBytes);
  return AlignedVector<float>(from, from + count);
}

token_ops::Quantization quantization_of(const Checks& checks, const std::string& scheme,
                                        float scale, int zero_point) {
  using token_ops::Scheme;
  if (scheme == "asymmetric") return {Scheme::kAsymmetric, 1.0f, 0};
  if (scheme == "symmetric") return {Scheme::kSymmetric, 1.0f, 0};
  if (scheme == "symmetric_full") return {Scheme::kSymmetricFull, 1.0f, 0};
  if (scheme != "static") {
    checks.fail("scheme", "one of asymmetric, symmetric, symmetric_full, static",
                "\"" + scheme + "\"");
  }
  if (!(scale > 0.0f && std::isfinite(scale))) {
    checks.fail("scale", "a positive finite number", std::to_string(scale));
  }
  checks.range("zero_point", zero_point, 0, 255);
  return {Scheme::kStatic, scale, zero_point};
}

// Four floats a row: scale (0: the row has none), zero point, least and largest level.
std::vector<token_ops::Output> outputs_at(const Checks& checks, uintptr_t address, int64_t rows) {
  constexpr int64_t kNumbers = 4;
  const auto* from =
      checks.pointer<const float>("outputs_ptr", address, rows * kNumbers * kFloatBytes);
  std::vector<token_ops::Output> outputs;
  for (int64_t r = 0; r < rows; ++r, from += kNumbers) {
    const float scale = from[0], zero_point = from[1], low = from[2], high = from[3];
    const bool is_range = -128.0f <= low && low <= zero_point && zero_point <= high &&
                          high <= 255.0f && low == std::rint(low) && high == std::rint(high) &&
                          zero_point == std::rint(zero_point);
    if (!(scale >= 0.0f && std::isfinite(scale)) || (scale > 0.0f && !is_range)) {
      checks.fail("outputs_ptr",
                  "a positive finite scale (or 0) and integers -128 <= low <= zero point <= high "
                  "<= 255 a row",
                  std::to_string(scale) + ", " + std::to_string(zero_point) + ", " +
                      std::to_string(low) + ", " + std::to_string(high) + " in row " +
                      std::to_string(r));
    }
    outputs.push_back(
        {scale, scale > 0.0f ? 1.0f / scale : 0.0f, low - zero_point, high - zero_point});
  }
  return outputs;
}

// Adds a zero point for each row of the weight.
void add_zero_points(const Checks& checks, Linear& linear, uintptr_t address) {
  if (linear.k > kMaxInputsWithZeroPoints) {
    checks.fail("zero_points_ptr",
                "at most " + std::to_string(kMaxInputsWithZeroPoints) +
                    " inputs, that sums stay within 32 bits",
                std::to_string(linear.k));
  }
  const auto* from = checks.pointer<const std::int32_t>("zero_points_ptr", address,
                                                        linear.n * int64_t{sizeof(std::int32_t)});
  linear.w_zero_points.assign(from, from + linear.n);
  for (int64_t r = 0; r < linear.n; ++r) {
    checks.range("zero_points_ptr", from[r], -128, 127);
    const auto k = static_cast<std::int32_t>(linear.k);
    linear.row_sums.push_back(linear.variants.front().int8->row_sums[static_cast<std::size_t>(r)] -
                              k * from[r]);
  }
}

using Int8Variants = std::vector<std::pair<int64_t, std::shared_ptr<int8_panels::Weight>>>;
using FloatVariants = std::vector<std::pair<int64_t, std::shared_ptr<float_panels::Weight>>>;

// Adds the layouts and checks that they are one weight's.
template <typename Variants, typename Member>
void add_variants(const Checks& checks, Linear& linear, const Variants& variants, Member member) {
  if (variants.empty()) checks.fail("variants", "at least one packed weight", "none");
  for (const auto& [most_tokens, weight] : variants) {
    encoder::Variant variant{};
    variant.most_tokens = most_tokens;
    variant.*member = weight;
    if (!linear.variants.empty()) {
      const encoder::Variant& last = linear.variants.back();
      if (variant.n() != linear.n || variant.k() != linear.k) {
        checks.fail("variants", "the same weight in every layout", "different shapes");
      }
      if (most_tokens <= last.most_tokens) {
        checks.fail("variants", "ascending numbers of tokens", std::to_string(most_tokens));
      }
    }
    linear.n = variant.n();
    linear.k = variant.k();
    linear.variants.push_back(std::move(variant));
  }
}

std::shared_ptr<Linear> int8_linear_of(const std::string& name, const Int8Variants& variants,
                                       uintptr_t scale_ptr, uintptr_t bias_ptr,
                                       const std::string& scheme, float scale, int zero_point,
                                       uintptr_t outputs_ptr, uintptr_t zero_points_ptr) {
  const Checks checks("PanelLinear");
  auto linear = std::make_shared<Linear>();
  linear->name = name;
  add_variants(checks, *linear, variants, &encoder::Variant::int8);
  linear->w_scale = floats_at(checks, "scale_ptr", scale_ptr, linear->n);
  if (bias_ptr != 0) linear->bias = floats_at(checks, "bias_ptr", bias_ptr, linear->n);
  linear->quantization = quantization_of(checks, scheme, scale, zero_point);
  if (zero_points_ptr != 0) add_zero_points(checks, *linear, zero_points_ptr);
  if (outputs_ptr != 0) linear->outputs = outputs_at(checks, outputs_ptr, linear->n);
  const auto is_finite = [](float value) { return std::isfinite(value); };
  linear->finite = std::all_of(linear->w_scale.begin(), linear->w_scale.end(), is_finite) &&
                   std::all_of(linear->bias.begin(), linear->bias.end(), is_finite);
  return linear;
}

std::shared_ptr<Linear> float_linear_of(const std::string& name, const FloatVariants& variants,
                                        uintptr_t bias_ptr) {
  const Checks checks("PanelLinear");
  auto linear = std::make_shared<Linear>();
  linear->name = name;
  add_variants(checks, *linear, variants, &encoder::Variant::floats);
  if (bias_ptr != 0) linear->bias = floats_at(checks, "bias_ptr", bias_ptr, linear->n);
  return linear;
}

int64_t bytes_of(const Linear& linear) {
  int64_t total = kFloatBytes * static_cast<int64_t>(linear.w_scale.size() + linear.bias.size());
  total += kFloatBytes * static_cast<int64_t>(linear.w_zero_points.size() + linear.row_sums.size());
  total += static_cast<int64_t>(linear.outputs.size() * sizeof(token_ops::Output));
  for (const encoder::Variant& variant : linear.variants) {
    total += variant.int8 ? variant.int8->bytes() : variant.floats->bytes();
  }
  return total;
}

// Threads that are worth their waiting for each other, which costs microseconds a stage.
int worthwhile_threads(const Linear& layer, int64_t tokens, int num_threads) {
  constexpr int64_t kOneThreadBytes = 200 * 1024;  // of weight, read once for 16 tokens
  const encoder::Variant& variant = layer.variant_for(tokens);
  const int64_t bytes = variant.int8 ? variant.int8->bytes() : variant.floats->bytes();
  const int64_t vectors = (tokens + panels::kVector - 1) / panels::kVector;
  return bytes <= kOneThreadBytes / vectors ? 1 : num_threads;
}

// One layer on row-major floats: what the drop-in Linear calls.
void apply(const std::shared_ptr<Linear>& layer, uintptr_t x_ptr, int64_t x_stride, int64_t tokens,
           const std::string& activation, uintptr_t residual_ptr, int64_t residual_stride,
           uintptr_t out_ptr, int64_t out_stride, int num_threads, const std::string& isa,
           const std::shared_ptr<WorkspacePool>& pool) {
  const Checks checks("PanelLinear.apply");
  checks.range("tokens", tokens, 1, kMaxTokens);
  checks.range("num_threads", num_threads, 1, std::numeric_limits<int>::max());
  const float* x = rows_at(checks, "x_ptr", x_ptr, tokens, layer->k, x_stride);
  const float* residual = residual_ptr == 0 ? nullptr
                                            : rows_at(checks, "residual_ptr", residual_ptr, tokens,
                                                      layer->n, residual_stride);
  rows_at(checks, "out_ptr", out_ptr, tokens, layer->n, out_stride);
  const token_ops::Activation act = activation_of(checks, activation);
  const Isa set = resolve_isa(isa);
  const WithoutGil without_gil;
  Forward forward({{0, tokens, 0}}, worthwhile_threads(*layer, tokens, num_threads), set, pool,
                  false);
  const ValueId x_id = forward.from_rows(x, x_stride, layer->k, nullptr);
  forward.release(x_id);
  ValueId residual_id = encoder::kNoValue;
  if (residual != nullptr) {
    residual_id = forward.from_rows(residual, residual_stride, layer->n, nullptr);
  }
  const ValueId y = forward.linear(x_id, layer, act, residual_id, nullptr);
  forward.to_rows(y, reinterpret_cast<float*>(out_ptr), out_stride);
  if (residual != nullptr) forward.release(residual_id);
  forward.release(y);
  forward.run();
}

}  // namespace

void bind_panel_layers(py::module_& m) {
  using py::arg;
  py::class_<WorkspacePool, std::shared_ptr<WorkspacePool>>(m, "WorkspacePool")
      .def(py::init<>())
      .def_property_readonly("bytes", &WorkspacePool::bytes);
  m.attr("PANEL_MAX_K_ZERO_POINTS") = kMaxInputsWithZeroPoints;
  py::class_<Linear, std::shared_ptr<Linear>>(m, "PanelLinear")
      .def(py::init(&int8_linear_of), arg("name"), arg("variants"), arg("scale_ptr"),
           arg("bias_ptr"), arg("scheme"), arg("scale") = 1.0f, arg("zero_point") = 0,
           arg("outputs_ptr") = 0, arg("zero_points_ptr") = 0)
      .def(py::init(&float_linear_of), arg("name"), arg("variants"), arg("bias_ptr"))
      .def_property_readonly("bytes", &bytes_of)
      .def("apply", &apply, arg("x_ptr"), arg("x_stride"), arg("tokens"), arg("activation"),
           arg("residual_ptr"), arg("residual_stride"), arg("out_ptr"), arg("out_stride"),
           arg("num_threads"), arg("isa"), arg("pool"));
  py::class_<Norm, std::shared_ptr<Norm>>(m, "PanelNorm")
      .def(py::init([](uintptr_t weight_ptr, uintptr_t bias_ptr, int64_t features,
                       std::optional<float> eps) {
             const Checks checks("PanelNorm");
             checks.range("features", features, 1, kMaxFeatures);
             return std::make_shared<Norm>(
                 Norm{floats_at(checks, "weight_ptr", weight_ptr, features),
                      floats_at(checks, "bias_ptr", bias_ptr, features), eps.has_value(),
                      eps.value_or(0.0f)});
           }),
           arg("weight_ptr"), arg("bias_ptr"), arg("features"), arg("eps"));
}

}  // namespace sparse_runtime::bindings
