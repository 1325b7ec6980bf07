#include "bindings/float_panels.h"

#include <array>
#include <memory>
#include <random>
#include <string>

#include "bindings/checks.h"
#include "bindings/gil.h"
#include "bindings/panel_calls.h"
#include "core/panels.h"
#include "cpu/float_panels/float_panels.h"

namespace py = pybind11;

namespace sparse_runtime::bindings {
namespace {

using float_panels::Layout;
using float_panels::Weight;
using std::int64_t;
using std::uintptr_t;

constexpr std::array<const char*, float_panels::kLayouts> kNames = {"dense32", "sparse32",
                                                                    "dense16", "tiles16"};

const float* weight_at(const Checks& checks, uintptr_t w_ptr, int64_t n, int64_t k) {
  checks.range("n", n, 0, kMaxOutputs);
  checks.range("k", k, 0, kMaxInputs);
  return checks.pointer<const float>("w_ptr", w_ptr, n * k * 4);
}

std::shared_ptr<Weight> pack(uintptr_t w_ptr, int64_t n, int64_t k, const std::string& layout) {
  const Checks checks("float_panels_pack");
  const float* w = weight_at(checks, w_ptr, n, k);
  const Layout chosen = layout_of<Layout>(checks, kNames, layout);
  const WithoutGil without_gil;
  return float_panels::pack(w, n, k, chosen);
}

py::dict count(uintptr_t w_ptr, int64_t n, int64_t k) {
  const float* w = weight_at(Checks("float_panels_count"), w_ptr, n, k);
  int64_t sparse = 0;
  {
    const WithoutGil without_gil;
    sparse = float_panels::sparse32_units(w, n, k);
  }
  py::dict units;
  units["dense32"] = float_panels::padded_rows(n) * k;
  units["sparse32"] = sparse;
  return units;
}

bool runs(const std::string& layout, const std::string& isa) {
  const Checks checks("float_panels_runs");
  return float_panels::accumulate_for(resolve_isa(isa),
                                      layout_of<Layout>(checks, kNames, layout)) != nullptr;
}

void accumulate(const Weight& weight, int64_t row, int64_t rows, uintptr_t x_ptr,
                int64_t panel_stride, int panels, int last_vectors, uintptr_t acc_ptr,
                const std::string& isa) {
  const Checks checks("float_panels_accumulate");
  const int64_t padded = float_panels::padded_rows(weight.n);
  const int64_t group = float_panels::row_group(weight.layout, padded, weight.k);
  check_rows(checks, row, rows, padded, group);
  checks.range("panels", panels, 1, 1 << 20);
  checks.range("last_vectors", last_vectors, 1, panels::kVectors);
  const int64_t stride = float_panels::reads_pairs(weight.layout)
                             ? panels::bf16_in_panel(weight.k) * 2
                             : panels::floats_in_panel(weight.k) * 4;
  checks.range("panel_stride", panel_stride, stride, kMaxBytes / panels);
  const auto* x = checks.pointer<const char>("x_ptr", x_ptr, stride);
  auto* acc = checks.pointer<float>("acc_ptr", acc_ptr, rows * panels * panels::kSlots * 4);
  const auto kernel = float_panels::accumulate_for(resolve_isa(isa), weight.layout);
  if (kernel == nullptr) {
    throw std::runtime_error(std::string("float_panels_accumulate: layout ") +
                             kNames[static_cast<std::size_t>(weight.layout)] +
                             " has no kernel for instruction set " + isa);
  }
  const WithoutGil without_gil;
  kernel(weight.view(), {row, rows, x, panel_stride, panels, last_vectors, acc});
}

// The shortest of `repeats` runs over all rows, in seconds, on one thread.
double seconds(const Weight& weight, int panels, int last_vectors, int repeats,
               const std::string& isa) {
  const Checks checks("float_panels_seconds");
  checks.range("panels", panels, 1, 1 << 10);
  checks.range("last_vectors", last_vectors, 1, panels::kVectors);
  checks.range("repeats", repeats, 1, 1 << 20);
  const int64_t padded = float_panels::padded_rows(weight.n);
  const int64_t stride = float_panels::reads_pairs(weight.layout)
                             ? panels::bf16_in_panel(weight.k) * 2
                             : panels::floats_in_panel(weight.k) * 4;
  const auto kernel = float_panels::accumulate_for(resolve_isa(isa), weight.layout);
  if (kernel == nullptr) checks.fail("isa", "one that runs the layout", isa);
  const WithoutGil without_gil;
  // As floats and as pairs of bf16: finite numbers of both signs, as they come in a model.
  AlignedVector<std::uint16_t> x(static_cast<std::size_t>(stride * panels / 2));
  std::minstd_rand random;
  for (std::uint16_t& half : x) {
    const auto bits = static_cast<std::uint16_t>(random() >> 8);
    half = static_cast<std::uint16_t>((bits & 0x83ffu) | 0x3c00u);
  }
  AlignedVector<float> acc(static_cast<std::size_t>(padded * panels * panels::kSlots));
  const float_panels::Call call = {
      0, padded, reinterpret_cast<const char*>(x.data()), stride, panels, last_vectors, acc.data()};
  return shortest(repeats, [&] { kernel(weight.view(), call); });
}

}  // namespace

void bind_float_panels(py::module_& m) {
  using py::arg;
  py::class_<Weight, std::shared_ptr<Weight>>(m, "FloatPanelWeight")
      .def_readonly("n", &Weight::n)
      .def_readonly("k", &Weight::k)
      .def_property_readonly(
          "layout", [](const Weight& w) { return kNames[static_cast<std::size_t>(w.layout)]; })
      .def_property_readonly("bytes", &Weight::bytes)
      .def_property_readonly("reads_pairs",
                             [](const Weight& w) { return float_panels::reads_pairs(w.layout); })
      .def(
          "unpack",
          [](const Weight& w, uintptr_t w_ptr) {
            const Checks checks("FloatPanelWeight.unpack");
            float_panels::unpack(w, checks.pointer<float>("w_ptr", w_ptr, w.n * w.k * 4));
          },
          arg("w_ptr"));
  m.def("float_panels_pack", &pack, arg("w_ptr"), arg("n"), arg("k"), arg("layout"));
  m.def("float_panels_count", &count, arg("w_ptr"), arg("n"), arg("k"));
  m.def("float_panels_seconds", &seconds, arg("weight"), arg("panels"), arg("last_vectors"),
        arg("repeats"), arg("isa") = "auto");
  m.def("float_panels_runs", &runs, arg("layout"), arg("isa") = "auto");
  m.def("float_panels_accumulate", &accumulate, arg("weight"), arg("row"), arg("rows"),
        arg("x_ptr"), arg("panel_stride"), arg("panels"), arg("last_vectors"), arg("acc_ptr"),
        arg("isa"));
}

}  // namespace sparse_runtime::bindings
