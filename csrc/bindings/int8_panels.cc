#include "bindings/int8_panels.h"

#include <array>
#include <memory>
#include <random>
#include <string>

#include "bindings/checks.h"
#include "bindings/gil.h"
#include "bindings/panel_calls.h"
#include "core/panels.h"
#include "cpu/int8_panels/int8_panels.h"

namespace py = pybind11;

namespace sparse_runtime::bindings {
namespace {

using int8_panels::Layout;
using int8_panels::Weight;
using std::int64_t;
using std::uintptr_t;

constexpr std::array<const char*, int8_panels::kLayouts> kNames = {
    "dense",          "band4_grouped", "band4_gathered", "band1_grouped",
    "band1_gathered", "tiles",         "tile_bits"};

const std::int8_t* weight_at(const Checks& checks, uintptr_t w_ptr, int64_t n, int64_t k) {
  checks.range("n", n, 0, kMaxOutputs);
  checks.range("k", k, 0, kMaxInputs);
  return checks.pointer<const std::int8_t>("w_ptr", w_ptr, n * k);
}

std::shared_ptr<Weight> pack(uintptr_t w_ptr, int64_t n, int64_t k, const std::string& layout) {
  const Checks checks("int8_panels_pack");
  const std::int8_t* w = weight_at(checks, w_ptr, n, k);
  const Layout chosen = layout_of<Layout>(checks, kNames, layout);
  const WithoutGil without_gil;
  return int8_panels::pack(w, n, k, chosen);
}

py::dict count(uintptr_t w_ptr, int64_t n, int64_t k) {
  const std::int8_t* w = weight_at(Checks("int8_panels_count"), w_ptr, n, k);
  int8_panels::Cost cost;
  {
    const WithoutGil without_gil;
    cost = int8_panels::count(w, n, k);
  }
  py::dict units;
  for (std::size_t i = 0; i < kNames.size(); ++i) units[kNames[i]] = cost.units[i];
  units["nonzeros"] = cost.nonzeros;
  return units;
}

bool runs(const std::string& layout, const std::string& isa) {
  const Checks checks("int8_panels_runs");
  return int8_panels::accumulate_for(resolve_isa(isa), layout_of<Layout>(checks, kNames, layout)) !=
         nullptr;
}

void accumulate(const Weight& weight, int64_t row, int64_t rows, uintptr_t x_ptr,
                int64_t panel_stride, int panels, int last_vectors, uintptr_t acc_ptr,
                const std::string& isa) {
  const Checks checks("int8_panels_accumulate");
  const int64_t padded = int8_panels::padded_rows(weight.n);
  const int64_t group = int8_panels::row_group(weight.layout, padded, weight.k);
  check_rows(checks, row, rows, padded, group);
  checks.range("panels", panels, 1, 1 << 20);
  checks.range("last_vectors", last_vectors, 1, panels::kVectors);
  const int64_t stride = panels::bytes_in_panel(weight.k);
  checks.range("panel_stride", panel_stride, stride, kMaxBytes / panels);
  const auto* x = checks.pointer<const std::uint8_t>("x_ptr", x_ptr, stride);
  auto* acc = checks.pointer<std::int32_t>("acc_ptr", acc_ptr, rows * panels * panels::kSlots * 4);
  const auto kernel = int8_panels::accumulate_for(resolve_isa(isa), weight.layout);
  if (kernel == nullptr) {
    throw std::runtime_error(std::string("int8_panels_accumulate: layout ") +
                             kNames[static_cast<std::size_t>(weight.layout)] +
                             " has no kernel for instruction set " + isa);
  }
  const WithoutGil without_gil;
  AlignedVector<char> scratch(int8_panels::kScratchBytes);
  kernel(weight.view(), {row, rows, x, panel_stride, panels, last_vectors, acc, scratch.data()});
}

// The shortest of `repeats` runs over all rows, in seconds, on one thread.
double seconds(const Weight& weight, int panels, int last_vectors, int repeats,
               const std::string& isa) {
  const Checks checks("int8_panels_seconds");
  checks.range("panels", panels, 1, 1 << 10);
  checks.range("last_vectors", last_vectors, 1, panels::kVectors);
  checks.range("repeats", repeats, 1, 1 << 20);
  const int64_t padded = int8_panels::padded_rows(weight.n);
  const int64_t stride = panels::bytes_in_panel(weight.k);
  const auto kernel = int8_panels::accumulate_for(resolve_isa(isa), weight.layout);
  if (kernel == nullptr) checks.fail("isa", "one that runs the layout", isa);
  const WithoutGil without_gil;
  // Bytes as they come in a model: matrix units are faster on equal ones.
  AlignedVector<std::uint8_t> x(static_cast<std::size_t>(stride * panels));
  std::minstd_rand random;
  for (std::uint8_t& byte : x) byte = static_cast<std::uint8_t>(random() >> 8);
  AlignedVector<std::int32_t> acc(static_cast<std::size_t>(padded * panels * panels::kSlots));
  AlignedVector<char> scratch(int8_panels::kScratchBytes);
  const int8_panels::Call call = {0,      padded,       x.data(),   stride,
                                  panels, last_vectors, acc.data(), scratch.data()};
  return shortest(repeats, [&] { kernel(weight.view(), call); });
}

}  // namespace

void bind_int8_panels(py::module_& m) {
  using py::arg;
  py::class_<Weight, std::shared_ptr<Weight>>(m, "Int8PanelWeight")
      .def_readonly("n", &Weight::n)
      .def_readonly("k", &Weight::k)
      .def_property_readonly(
          "layout", [](const Weight& w) { return kNames[static_cast<std::size_t>(w.layout)]; })
      .def_property_readonly("bytes", &Weight::bytes)
      .def_property_readonly("reads_plain",
                             [](const Weight& w) { return int8_panels::reads_plain(w.layout); })
      .def(
          "unpack",
          [](const Weight& w, uintptr_t w_ptr) {
            const Checks checks("Int8PanelWeight.unpack");
            int8_panels::unpack(w, checks.pointer<std::int8_t>("w_ptr", w_ptr, w.n * w.k));
          },
          arg("w_ptr"));
  m.attr("PANEL_MAX_K") = kMaxInputs;
  m.def("int8_panels_pack", &pack, arg("w_ptr"), arg("n"), arg("k"), arg("layout"));
  m.def("int8_panels_count", &count, arg("w_ptr"), arg("n"), arg("k"));
  m.def("int8_panels_seconds", &seconds, arg("weight"), arg("panels"), arg("last_vectors"),
        arg("repeats"), arg("isa") = "auto");
  m.def("int8_panels_runs", &runs, arg("layout"), arg("isa") = "auto");
  m.def("int8_panels_accumulate", &accumulate, arg("weight"), arg("row"), arg("rows"), arg("x_ptr"),
        arg("panel_stride"), arg("panels"), arg("last_vectors"), arg("acc_ptr"), arg("isa"));
}

}  // namespace sparse_runtime::bindings
