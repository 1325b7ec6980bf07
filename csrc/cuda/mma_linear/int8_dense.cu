#include "cuda/mma_linear/kernels.h"

SPARSE_RUNTIME_KERNELS(kInt8Dense, "mma.int8.dense", std::int8_t, kDense)
