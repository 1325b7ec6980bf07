// All kernels by number, and what their launches need; for the library and for the emulator.
#pragma once

#include "cuda/mma_linear/kernels.h"

namespace sparse_runtime::mma {

int kernel_count();
// Null where there is no such number.
const Kernel* kernel(int number);

struct Grid {
  int tiles, splits;
};
Grid grid(const Kernel& kernel, int tokens, int out_features, int split_k);

}  // namespace sparse_runtime::mma
