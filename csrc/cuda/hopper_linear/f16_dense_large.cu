#include "cuda/hopper_linear/kernel.h"

SPARSE_RUNTIME_HOPPER_KERNEL(f16, cutlass::half_t, dense, false, 128x256)
SPARSE_RUNTIME_HOPPER_KERNEL(f16, cutlass::half_t, dense, false, 128x128)
