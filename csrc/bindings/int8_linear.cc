#include "bindings/int8_linear.h"

#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "bindings/checks.h"
#include "bindings/gil.h"
#include "core/int8_layout.h"
#include "cpu/int8_linear/int8_linear.h"

namespace py = pybind11;

namespace sparse_runtime::bindings {
namespace {

namespace layout = int8_layout;
using std::int64_t;
using std::uintptr_t;

void check_weight_shape(const Checks& checks, int64_t n, int64_t k) {
  checks.range("n", n, 0, layout::kMaxOutputs);
  checks.range("k", k, 0, layout::kMaxInputs);
}

std::pair<int64_t, int64_t> layout_size(int64_t n, int64_t k) {
  check_weight_shape(Checks("int8_linear_layout_size"), n, k);
  return {layout::weight_bytes(n, k), layout::row_sum_count(n)};
}

void pack(uintptr_t w_ptr, int64_t n, int64_t k, uintptr_t packed_ptr, uintptr_t row_sums_ptr) {
  const Checks checks("int8_linear_pack");
  check_weight_shape(checks, n, k);
  const auto* w = checks.pointer<const std::int8_t>("w_ptr", w_ptr, n * k);
  auto* packed = checks.pointer<std::int8_t>("packed_ptr", packed_ptr, layout::weight_bytes(n, k));
  auto* row_sums =
      checks.pointer<std::int32_t>("row_sums_ptr", row_sums_ptr, 4 * layout::row_sum_count(n));
  const WithoutGil without_gil;
  int8_linear::pack(w, n, k, packed, row_sums);
}

void unpack(uintptr_t packed_ptr, int64_t n, int64_t k, uintptr_t w_ptr) {
  const Checks checks("int8_linear_unpack");
  check_weight_shape(checks, n, k);
  const auto* packed =
      checks.pointer<const std::int8_t>("packed_ptr", packed_ptr, layout::weight_bytes(n, k));
  auto* w = checks.pointer<std::int8_t>("w_ptr", w_ptr, n * k);
  const WithoutGil without_gil;
  int8_linear::unpack(packed, n, k, w);
}

struct Quantize {
  int8_linear::QuantizeShape shape;
  const float* x;
  std::uint8_t* q;
};

Quantize checked_quantize(const Checks& checks, uintptr_t x_ptr, int64_t t, int64_t k,
                          int64_t x_stride, uintptr_t q_ptr, int64_t q_stride, int num_threads) {
  checks.range("t", t, 0, kMaxBytes);
  checks.range("k", k, 0, kMaxBytes);
  checks.range("num_threads", num_threads, 1, std::numeric_limits<int>::max());
  const int64_t x_bytes = checks.matrix_bytes("x_stride", t, k, x_stride, sizeof(float));
  const int64_t q_bytes = checks.matrix_bytes("q_stride", t, k, q_stride, 1);
  return {{t, k, x_stride, q_stride},
          checks.pointer<const float>("x_ptr", x_ptr, x_bytes),
          checks.pointer<std::uint8_t>("q_ptr", q_ptr, q_bytes)};
}

void quantize_rows(uintptr_t x_ptr, int64_t t, int64_t k, int64_t x_stride, uintptr_t q_ptr,
                   int64_t q_stride, uintptr_t scale_ptr, int num_threads, const std::string& isa,
                   uintptr_t zero_points_ptr) {
  const Checks checks("quantize_rows");
  const Quantize a = checked_quantize(checks, x_ptr, t, k, x_stride, q_ptr, q_stride, num_threads);
  const int64_t scale_bytes = checks.matrix_bytes("t", t, 1, 1, sizeof(float));
  auto* scale = checks.pointer<float>("scale_ptr", scale_ptr, scale_bytes);
  auto* zero_points = zero_points_ptr == 0
                          ? nullptr
                          : checks.pointer<std::uint8_t>("zero_points_ptr", zero_points_ptr, t);
  const Isa chosen = resolve_isa(isa);
  const WithoutGil without_gil;
  if (zero_points == nullptr) {
    int8_linear::quantize_rows(chosen, num_threads, a.shape, a.x, a.q, scale);
  } else {
    int8_linear::quantize_rows_asymmetric(chosen, num_threads, a.shape, a.x, a.q, scale,
                                          zero_points);
  }
}

void quantize_static(uintptr_t x_ptr, int64_t t, int64_t k, int64_t x_stride, uintptr_t q_ptr,
                     int64_t q_stride, double scale, int64_t zero_point, int64_t qmin, int64_t qmax,
                     int num_threads, const std::string& isa) {
  const Checks checks("quantize_static");
  const Quantize a = checked_quantize(checks, x_ptr, t, k, x_stride, q_ptr, q_stride, num_threads);
  const auto scale32 = static_cast<float>(scale);
  if (!std::isfinite(scale32) || !(scale32 > 0.0f)) {
    checks.fail("scale", "a positive, finite float32", std::to_string(scale));
  }
  checks.range("zero_point", zero_point, 0, 255);
  checks.range("qmin", qmin, 0, 255);
  checks.range("qmax", qmax, qmin, 255);
  const int8_linear::StaticQuantization quantization = {
      scale32, static_cast<int>(zero_point), static_cast<int>(qmin), static_cast<int>(qmax)};
  const Isa chosen = resolve_isa(isa);
  const WithoutGil without_gil;
  int8_linear::quantize_static(chosen, num_threads, a.shape, a.x, quantization, a.q);
}

int8_linear::Product checked_product(const Checks& checks, uintptr_t q_ptr, int64_t q_stride,
                                     int64_t t, uintptr_t packed_ptr, uintptr_t row_sums_ptr,
                                     int64_t n, int64_t k, int64_t zero_point,
                                     uintptr_t zero_points_ptr, int num_threads) {
  check_weight_shape(checks, n, k);
  checks.range("t", t, 0, kMaxBytes);
  checks.range("zero_point", zero_point, 0, 255);
  checks.range("num_threads", num_threads, 1, std::numeric_limits<int>::max());
  const int64_t q_bytes = checks.matrix_bytes("q_stride", t, k, q_stride, 1);
  int8_linear::Product p = {};
  p.x = checks.pointer<const std::uint8_t>("q_ptr", q_ptr, q_bytes);
  p.x_stride = q_stride;
  p.t = t;
  p.packed =
      checks.pointer<const std::int8_t>("packed_ptr", packed_ptr, layout::weight_bytes(n, k));
  p.row_sums = checks.pointer<const std::int32_t>("row_sums_ptr", row_sums_ptr,
                                                  4 * layout::row_sum_count(n));
  p.n = n;
  p.k = k;
  p.zero_point = static_cast<int>(zero_point);
  if (zero_points_ptr != 0) {
    p.zero_points = checks.pointer<const std::uint8_t>("zero_points_ptr", zero_points_ptr, t);
  }
  return p;
}

int8_linear::Activation checked_activation(const Checks& checks, const std::string& name) {
  if (name == "none") return int8_linear::Activation::kNone;
  if (name == "relu") return int8_linear::Activation::kRelu;
  if (name == "gelu") return int8_linear::Activation::kGelu;
  checks.fail("activation", "one of none, relu, gelu", "\"" + name + "\"");
}

void linear(uintptr_t q_ptr, int64_t q_stride, int64_t t, uintptr_t packed_ptr,
            uintptr_t row_sums_ptr, int64_t n, int64_t k, uintptr_t x_scale_ptr,
            bool x_scale_is_per_row, int64_t zero_point, uintptr_t w_scale_ptr, uintptr_t bias_ptr,
            const std::string& activation, uintptr_t residual_ptr, int64_t residual_stride,
            uintptr_t out_ptr, int64_t out_stride, int num_threads, const std::string& isa,
            uintptr_t zero_points_ptr) {
  const Checks checks("int8_linear");
  const int8_linear::Product p =
      checked_product(checks, q_ptr, q_stride, t, packed_ptr, row_sums_ptr, n, k, zero_point,
                      zero_points_ptr, num_threads);
  const int64_t out_bytes = checks.matrix_bytes("out_stride", t, n, out_stride, sizeof(float));
  const int64_t scales = x_scale_is_per_row ? t : 1;
  const auto row_bytes = static_cast<int64_t>(sizeof(float)) * n;
  int8_linear::Epilogue e = {};
  e.x_scale = checks.pointer<const float>("x_scale_ptr", x_scale_ptr,
                                          checks.matrix_bytes("t", scales, 1, 1, sizeof(float)));
  e.x_scale_is_per_row = x_scale_is_per_row;
  e.w_scale = checks.pointer<const float>("w_scale_ptr", w_scale_ptr, row_bytes);
  if (bias_ptr != 0) e.bias = checks.pointer<const float>("bias_ptr", bias_ptr, row_bytes);
  e.activation = checked_activation(checks, activation);
  if (residual_ptr != 0) {
    e.residual = checks.pointer<const float>(
        "residual_ptr", residual_ptr,
        checks.matrix_bytes("residual_stride", t, n, residual_stride, sizeof(float)));
  }
  e.residual_stride = residual_stride;
  auto* out = checks.pointer<float>("out_ptr", out_ptr, out_bytes);
  const Isa chosen = resolve_isa(isa);
  if (out_bytes == 0) return;
  const WithoutGil without_gil;
  int8_linear::linear(chosen, num_threads, p, e, out, out_stride);
}

void accumulate(uintptr_t q_ptr, int64_t q_stride, int64_t t, uintptr_t packed_ptr,
                uintptr_t row_sums_ptr, int64_t n, int64_t k, int64_t zero_point, uintptr_t out_ptr,
                int64_t out_stride, int num_threads, const std::string& isa,
                uintptr_t zero_points_ptr) {
  const Checks checks("int8_linear_accumulate");
  const int8_linear::Product p =
      checked_product(checks, q_ptr, q_stride, t, packed_ptr, row_sums_ptr, n, k, zero_point,
                      zero_points_ptr, num_threads);
  const int64_t out_bytes =
      checks.matrix_bytes("out_stride", t, n, out_stride, sizeof(std::int32_t));
  auto* out = checks.pointer<std::int32_t>("out_ptr", out_ptr, out_bytes);
  const Isa chosen = resolve_isa(isa);
  if (out_bytes == 0) return;
  const WithoutGil without_gil;
  int8_linear::accumulate(chosen, num_threads, p, out, out_stride);
}

}  // namespace

void bind_int8_linear(py::module_& m) {
  using py::arg;
  m.attr("INT8_LINEAR_MAX_K") = layout::kMaxInputs;
  m.def(
      "int8_linear_layout_size",
      [](int64_t n, int64_t k) {
        const auto [weight_bytes, row_sum_count] = layout_size(n, k);
        return py::make_tuple(weight_bytes, row_sum_count);
      },
      arg("n"), arg("k"));
  m.def("int8_linear_pack", &pack, arg("w_ptr"), arg("n"), arg("k"), arg("packed_ptr"),
        arg("row_sums_ptr"));
  m.def("int8_linear_unpack", &unpack, arg("packed_ptr"), arg("n"), arg("k"), arg("w_ptr"));
  m.def("quantize_rows", &quantize_rows, arg("x_ptr"), arg("t"), arg("k"), arg("x_stride"),
        arg("q_ptr"), arg("q_stride"), arg("scale_ptr"), arg("num_threads"), arg("isa"),
        arg("zero_points_ptr") = 0);
  m.def("quantize_static", &quantize_static, arg("x_ptr"), arg("t"), arg("k"), arg("x_stride"),
        arg("q_ptr"), arg("q_stride"), arg("scale"), arg("zero_point"), arg("qmin"), arg("qmax"),
        arg("num_threads"), arg("isa"));
  m.def("int8_linear", &linear, arg("q_ptr"), arg("q_stride"), arg("t"), arg("packed_ptr"),
        arg("row_sums_ptr"), arg("n"), arg("k"), arg("x_scale_ptr"), arg("x_scale_is_per_row"),
        arg("zero_point"), arg("w_scale_ptr"), arg("bias_ptr"), arg("activation"),
        arg("residual_ptr"), arg("residual_stride"), arg("out_ptr"), arg("out_stride"),
        arg("num_threads"), arg("isa"), arg("zero_points_ptr") = 0);
  m.def("int8_linear_accumulate", &accumulate, arg("q_ptr"), arg("q_stride"), arg("t"),
        arg("packed_ptr"), arg("row_sums_ptr"), arg("n"), arg("k"), arg("zero_point"),
        arg("out_ptr"), arg("out_stride"), arg("num_threads"), arg("isa"),
        arg("zero_points_ptr") = 0);
}

}  // namespace sparse_runtime::bindings
