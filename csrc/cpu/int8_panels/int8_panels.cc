#include "cpu/int8_panels/int8_panels.h"

namespace sparse_runtime::int8_panels {
namespace {

const Kernels& bands_for(Isa isa) {
#ifdef SPARSE_RUNTIME_HAS_AVX512_VNNI
  if (isa >= Isa::kAvx512Vnni) return kAvx512VnniKernels;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX512
  if (isa >= Isa::kAvx512) return kAvx512Kernels;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX_VNNI
  if (isa >= Isa::kAvxVnni) return kAvxVnniKernels;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX2
  if (isa >= Isa::kAvx2) return kAvx2Kernels;
#endif
  static_cast<void>(isa);
  return kGenericKernels;
}

}  // namespace

Accumulate accumulate_for(Isa isa, Layout layout) {
#ifdef SPARSE_RUNTIME_HAS_AMX
  if (isa == Isa::kAmx && kAmxKernels.accumulate[static_cast<int>(layout)] != nullptr) {
    return kAmxKernels.accumulate[static_cast<int>(layout)];
  }
#endif
  return bands_for(isa).accumulate[static_cast<int>(layout)];
}

Peak band_peak(Isa isa) {
  return bands_for(isa).peak;
}

Peak tile_peak(Isa isa) {
#ifdef SPARSE_RUNTIME_HAS_AMX
  if (isa == Isa::kAmx) return kAmxKernels.peak;
#endif
  static_cast<void>(isa);
  return nullptr;
}

}  // namespace sparse_runtime::int8_panels
