#include "cuda/mma_linear/kernels.h"

SPARSE_RUNTIME_KERNELS(kBf16Exact, "mma.bf16.exact", ptx::BF16, kExact)
