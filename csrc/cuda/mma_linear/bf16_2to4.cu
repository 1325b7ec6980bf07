#include "cuda/mma_linear/kernels.h"

SPARSE_RUNTIME_KERNELS(kBf16TwoOfFour, "mma.bf16.2to4", ptx::BF16, kTwoOfFour)
