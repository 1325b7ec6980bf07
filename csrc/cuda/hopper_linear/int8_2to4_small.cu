#include "cuda/hopper_linear/kernel.h"

SPARSE_RUNTIME_HOPPER_KERNEL(int8, std::int8_t, 2to4, true, 64x128)
SPARSE_RUNTIME_HOPPER_KERNEL(int8, std::int8_t, 2to4, true, 64x32)
