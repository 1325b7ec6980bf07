#include "cuda/mma_linear/kernels.h"

SPARSE_RUNTIME_KERNELS(kF16Dense, "mma.f16.dense", ptx::F16, kDense)
