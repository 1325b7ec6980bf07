#include "cuda/mma_linear/kernels.h"

SPARSE_RUNTIME_KERNELS(kInt8TwoOfFour, "mma.int8.2to4", std::int8_t, kTwoOfFour)
