#include "cuda/hopper_linear/kernel.h"

SPARSE_RUNTIME_HOPPER_KERNEL(f16, cutlass::half_t, 2to4, true, 64x128)
SPARSE_RUNTIME_HOPPER_KERNEL(f16, cutlass::half_t, 2to4, true, 64x32)
