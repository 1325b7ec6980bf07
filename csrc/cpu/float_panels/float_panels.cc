#include "cpu/float_panels/float_panels.h"

namespace sparse_runtime::float_panels {
namespace {

const Kernels& bands_for(Isa isa) {
#ifdef SPARSE_RUNTIME_HAS_AVX512_BF16
  if (isa >= Isa::kAvx512Bf16) return kAvx512Bf16Kernels;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX512
  if (isa >= Isa::kAvx512) return kAvx512Kernels;
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

Peak band_peak32(Isa isa) {
  return bands_for(isa).peak32;
}

Peak band_peak16(Isa isa) {
  return bands_for(isa).peak16;
}

Peak tile_peak16(Isa isa) {
#ifdef SPARSE_RUNTIME_HAS_AMX
  if (isa == Isa::kAmx) return kAmxKernels.peak16;
#endif
  static_cast<void>(isa);
  return nullptr;
}

}  // namespace sparse_runtime::float_panels
