#include "cuda/hopper_linear/kernel.h"

SPARSE_RUNTIME_HOPPER_KERNEL(f16, cutlass::half_t, dense, false, 64x128)
SPARSE_RUNTIME_HOPPER_KERNEL(f16, cutlass::half_t, dense, false, 64x32)
