// The Python module sparse_runtime._C: its parts are in this folder, the only one that knows
// Python. Arrays come as addresses and sizes, so the module depends on no array library and no
// version of one.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings/encoder.h"
#include "bindings/float_panels.h"
#include "bindings/int8_panels.h"
#include "bindings/panel_attention.h"
#include "bindings/peaks.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace sparse_runtime::bindings {
namespace {

py::dict cpu_features_dict() {
  const CpuFeatures& f = cpu_features();
  py::dict d;
  d["avx2"] = f.avx2;
  d["fma"] = f.fma;
  d["f16c"] = f.f16c;
  d["avx_vnni"] = f.avx_vnni;
  d["avx512f"] = f.avx512f;
  d["avx512bw"] = f.avx512bw;
  d["avx512dq"] = f.avx512dq;
  d["avx512vl"] = f.avx512vl;
  d["avx512_vnni"] = f.avx512_vnni;
  d["avx512_bf16"] = f.avx512_bf16;
  d["avx512_vbmi2"] = f.avx512_vbmi2;
  d["avx512_fp16"] = f.avx512_fp16;
  d["amx_tile"] = f.amx_tile;
  d["amx_int8"] = f.amx_int8;
  d["amx_bf16"] = f.amx_bf16;
  d["hypervisor"] = f.hypervisor;
  return d;
}

py::list isas() {
  py::list rows;
  for (const Isa isa : kAllIsas) {
    const IsaStatus s = isa_status(isa);
    py::dict row;
    row["name"] = s.name;
    row["built"] = s.built;
    row["available"] = s.available;
    row["reason"] = s.reason;
    rows.append(row);
  }
  return rows;
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

void use_openmp_at(std::uintptr_t address) {
  use_openmp(reinterpret_cast<OpenMpParallel>(address));
}

py::dict build_info() {
  py::list built;
  py::dict not_built;
  for (const Isa isa : kAllIsas) {
    const IsaStatus s = isa_status(isa);
    if (s.built) {
      built.append(s.name);
    } else {
      not_built[s.name] = s.reason;
    }
  }
  py::dict families;
  for (const char* family : {"float_panels", "int8_panels", "panel_attention", "token_ops"}) {
    families[family] = built;
  }
  py::dict d;
  d["compiler"] = compiler();
  d["cxx_standard"] = static_cast<long>(__cplusplus);
  d["isas"] = built;
  d["isas_not_built"] = not_built;
  d["families"] = families;
  return d;
}

}  // namespace
}  // namespace sparse_runtime::bindings

PYBIND11_MODULE(_C, m) {
  using namespace sparse_runtime;
  m.doc() = "C++ kernels of sparse_runtime, by address and size.";
  m.def("cpu_features", &bindings::cpu_features_dict);
  m.def("isas", &bindings::isas);
  m.def("build_info", &bindings::build_info);
  m.def("max_threads", &usable_cpus);
  m.def("use_openmp", &bindings::use_openmp_at, py::arg("gomp_parallel_ptr"));
  bindings::bind_int8_panels(m);
  bindings::bind_float_panels(m);
  bindings::bind_panel_attention(m);
  bindings::bind_peaks(m);
  bindings::bind_encoder(m);
}
