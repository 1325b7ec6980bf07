#include "cuda/mma_linear/kernels.h"

SPARSE_RUNTIME_KERNELS(kF16Exact, "mma.f16.exact", ptx::F16, kExact)
