#include "cpu/isa.h"

#include <stdexcept>

#include "core/cpu_features.h"

namespace sparse_runtime {
namespace {

// setup.py defines SPARSE_RUNTIME_HAS_<ISA> for each set that it builds, and the reason otherwise.
#ifdef SPARSE_RUNTIME_HAS_AVX2
constexpr const char* kAvx2NotBuilt = nullptr;
#else
constexpr const char* kAvx2NotBuilt = SPARSE_RUNTIME_AVX2_NOT_BUILT;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX512_VNNI
constexpr const char* kAvx512VnniNotBuilt = nullptr;
#else
constexpr const char* kAvx512VnniNotBuilt = SPARSE_RUNTIME_AVX512_VNNI_NOT_BUILT;
#endif

struct Requirement {
  const char* feature;
  bool present;
};

template <std::size_t kCount>
IsaStatus status(const char* name, const char* not_built, const Requirement (&required)[kCount]) {
  if (not_built != nullptr) return {name, false, false, std::string("not built: ") + not_built};
  std::string missing;
  for (const Requirement& r : required) {
    if (!r.present) missing += (missing.empty() ? "" : ", ") + std::string(r.feature);
  }
  if (missing.empty()) return {name, true, true, ""};
  return {name, true, false, "this CPU or operating system lacks " + missing};
}

}  // namespace

IsaStatus isa_status(Isa isa) {
  const CpuFeatures& f = cpu_features();
  switch (isa) {
    case Isa::kAvx2:
      return status("avx2", kAvx2NotBuilt, {{"avx2", f.avx2}, {"fma", f.fma}, {"f16c", f.f16c}});
    case Isa::kAvx512Vnni:
      return status("avx512_vnni", kAvx512VnniNotBuilt,
                    {{"avx512f", f.avx512f},
                     {"avx512bw", f.avx512bw},
                     {"avx512dq", f.avx512dq},
                     {"avx512vl", f.avx512vl},
                     {"avx512_vnni", f.avx512_vnni},
                     {"fma", f.fma},
                     {"f16c", f.f16c}});
    case Isa::kGeneric:
      break;
  }
  return {"generic", true, true, ""};
}

Isa resolve_isa(std::string_view name) {
  std::string known = "auto";
  Isa best = Isa::kGeneric;
  for (const Isa isa : kAllIsas) {
    const IsaStatus s = isa_status(isa);
    if (name == s.name) {
      if (s.available) return isa;
      throw std::runtime_error("isa: " + std::string(name) + " cannot run here (" + s.reason +
                               "); use \"auto\" or one that sparse_runtime._C.isas() lists as "
                               "available");
    }
    if (s.available) best = isa;
    known += ", " + std::string(s.name);
  }
  if (name == "auto") return best;
  throw std::invalid_argument("isa: expected one of " + known + "; got \"" + std::string(name) +
                              "\"");
}

}  // namespace sparse_runtime
