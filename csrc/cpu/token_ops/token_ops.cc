#include "cpu/token_ops/token_ops.h"

namespace sparse_runtime::token_ops {

const Kernels& kernels_for(Isa isa) {
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

}  // namespace sparse_runtime::token_ops
