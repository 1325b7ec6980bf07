#include "cuda/hopper_linear/kernel.h"

SPARSE_RUNTIME_HOPPER_KERNEL(int8, std::int8_t, dense, false, 128x256)
SPARSE_RUNTIME_HOPPER_KERNEL(int8, std::int8_t, dense, false, 128x128)
