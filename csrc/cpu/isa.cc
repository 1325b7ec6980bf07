#include "cpu/isa.h"

#include <cstdlib>
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
#ifdef SPARSE_RUNTIME_HAS_AVX_VNNI
constexpr const char* kAvxVnniNotBuilt = nullptr;
#else
constexpr const char* kAvxVnniNotBuilt = SPARSE_RUNTIME_AVX_VNNI_NOT_BUILT;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX512
constexpr const char* kAvx512NotBuilt = nullptr;
#else
constexpr const char* kAvx512NotBuilt = SPARSE_RUNTIME_AVX512_NOT_BUILT;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX512_VNNI
constexpr const char* kAvx512VnniNotBuilt = nullptr;
#else
constexpr const char* kAvx512VnniNotBuilt = SPARSE_RUNTIME_AVX512_VNNI_NOT_BUILT;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX512_BF16
constexpr const char* kAvx512Bf16NotBuilt = nullptr;
#else
constexpr const char* kAvx512Bf16NotBuilt = SPARSE_RUNTIME_AVX512_BF16_NOT_BUILT;
#endif
#ifdef SPARSE_RUNTIME_HAS_AMX
constexpr const char* kAmxNotBuilt = nullptr;
#else
constexpr const char* kAmxNotBuilt = SPARSE_RUNTIME_AMX_NOT_BUILT;
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
  const bool avx2 = f.avx2 && f.fma && f.f16c;
  const bool avx512 = avx2 && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl;
  switch (isa) {
    case Isa::kAvx2:
      return status("avx2", kAvx2NotBuilt, {{"avx2", f.avx2}, {"fma", f.fma}, {"f16c", f.f16c}});
    case Isa::kAvxVnni:
      return status("avx_vnni", kAvxVnniNotBuilt, {{"avx2", avx2}, {"avx_vnni", f.avx_vnni}});
    case Isa::kAvx512:
      return status("avx512", kAvx512NotBuilt,
                    {{"avx2", avx2},
                     {"avx512f", f.avx512f},
                     {"avx512bw", f.avx512bw},
                     {"avx512dq", f.avx512dq},
                     {"avx512vl", f.avx512vl}});
    case Isa::kAvx512Vnni:
      return status("avx512_vnni", kAvx512VnniNotBuilt,
                    {{"avx512", avx512}, {"avx512_vnni", f.avx512_vnni}});
    case Isa::kAvx512Bf16:
      return status("avx512_bf16", kAvx512Bf16NotBuilt,
                    {{"avx512", avx512},
                     {"avx512_vnni", f.avx512_vnni},
                     {"avx512_bf16", f.avx512_bf16},
                     {"avx512_vbmi2", f.avx512_vbmi2}});
    case Isa::kAmx:
      return status("amx", kAmxNotBuilt,
                    {{"avx512", avx512},
                     {"avx512_vnni", f.avx512_vnni},
                     {"avx512_bf16", f.avx512_bf16},
                     {"avx512_vbmi2", f.avx512_vbmi2},
                     {"amx_tile", f.amx_tile},
                     {"amx_int8", f.amx_int8},
                     {"amx_bf16", f.amx_bf16},
                     {"permission to use AMX", f.amx_tile && amx_permitted()}});
    case Isa::kGeneric:
      break;
  }
  return {"generic", true, true, ""};
}

namespace {

Isa best_isa() {
  Isa best = Isa::kGeneric;
  for (const Isa isa : kAllIsas) {
    if (isa_status(isa).available) best = isa;
  }
  return best;
}

Isa named_isa(std::string_view name) {
  std::string known = "auto";
  for (const Isa isa : kAllIsas) {
    const IsaStatus s = isa_status(isa);
    if (name == s.name) {
      if (s.available) return isa;
      throw std::runtime_error("isa: " + std::string(name) + " cannot run here (" + s.reason +
                               "); use \"auto\" or one that sparse_runtime._C.isas() lists as "
                               "available");
    }
    known += ", " + std::string(s.name);
  }
  throw std::invalid_argument("isa: expected one of " + known + "; got \"" + std::string(name) +
                              "\"");
}

}  // namespace

Isa resolve_isa(std::string_view name) {
  if (name == "auto") {
    static const Isa automatic = [] {
      const char* wanted = std::getenv(kIsaVariable);
      return wanted == nullptr || *wanted == '\0' || std::string_view(wanted) == "auto"
                 ? best_isa()
                 : named_isa(wanted);
    }();
    return automatic;
  }
  return named_isa(name);
}

}  // namespace sparse_runtime
