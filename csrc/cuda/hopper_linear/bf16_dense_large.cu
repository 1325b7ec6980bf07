#include "cuda/hopper_linear/kernel.h"

SPARSE_RUNTIME_HOPPER_KERNEL(bf16, cutlass::bfloat16_t, dense, false, 128x256)
SPARSE_RUNTIME_HOPPER_KERNEL(bf16, cutlass::bfloat16_t, dense, false, 128x128)
