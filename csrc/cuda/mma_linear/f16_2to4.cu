#include "cuda/mma_linear/kernels.h"

SPARSE_RUNTIME_KERNELS(kF16TwoOfFour, "mma.f16.2to4", ptx::F16, kTwoOfFour)
