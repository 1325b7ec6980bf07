#include "cuda/mma_linear/kernels.h"

SPARSE_RUNTIME_KERNELS(kBf16Dense, "mma.bf16.dense", ptx::BF16, kDense)
