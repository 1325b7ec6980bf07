#include "cuda/mma_linear/kernels.h"

SPARSE_RUNTIME_KERNELS(kInt8Exact, "mma.int8.exact", std::int8_t, kExact)
