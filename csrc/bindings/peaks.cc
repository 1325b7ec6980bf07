#include "bindings/peaks.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>

#include "bindings/gil.h"
#include "cpu/float_panels/float_panels.h"
#include "cpu/int8_panels/int8_panels.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace sparse_runtime::bindings {
namespace {

// Long against a clock's reading, short against a thread's turn on its core.
constexpr double kSeconds = 2e-3;
constexpr int kRepeats = 5;

// Operations a second: the best of some repeats, on the calling thread.
template <typename Peak>
double speed(Peak peak) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  std::int64_t rounds = 1024;
  for (int repeats = 0; repeats < kRepeats;) {
    const Clock::time_point begin = Clock::now();
    const auto operations = static_cast<double>(peak(rounds));
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (seconds < kSeconds) {
      rounds *= 2;
      continue;
    }
    best = std::max(best, operations / seconds);
    ++repeats;
  }
  return best;
}

std::map<std::string, double> peaks(const std::string& isa_name) {
  const Isa isa = resolve_isa(isa_name);
  const WithoutGil without_gil;
  std::map<std::string, double> found;
  const auto add = [&](const char* name, auto peak) {
    if (peak != nullptr) found[name] = speed(peak);
  };
  add("int8", int8_panels::band_peak(isa));
  add("int8_tiles", int8_panels::tile_peak(isa));
  add("fp32", float_panels::band_peak32(isa));
  add("bf16", float_panels::band_peak16(isa));
  add("bf16_tiles", float_panels::tile_peak16(isa));
  return found;
}

}  // namespace

void bind_peaks(py::module_& m) {
  m.def("peaks", &peaks, py::arg("isa") = "auto");
}

}  // namespace sparse_runtime::bindings
