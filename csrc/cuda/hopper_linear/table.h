// All wgmma kernels by number; two of a type and structure to a file, made from kernel.h.
#pragma once

#include <cuda_runtime.h>

#include "cuda/api/sparse_runtime_cuda.h"

namespace sparse_runtime::hopper {

struct Kernel {
  const char* name;
  int type, structure;
  int tile_out, tile_tok, tile_in;
  int groups;  // warpgroups that share a tile
  int threads, shared_bytes;
  cudaError_t (*launch)(const SrLinear&, int processors, cudaStream_t);
};

// Whether rows of results and operands begin at multiples of four elements.
bool rows_by_four(const SrLinear& layer);

int kernel_count();
// Null where there is no such number.
const Kernel* kernel(int number);

// SR_OK, or SR_INVALID where a kernel cannot run a layer.
int check(const Kernel& kernel, const SrLinear& layer);
cudaError_t launch(const Kernel& kernel, const SrLinear& layer, cudaStream_t stream);

}  // namespace sparse_runtime::hopper
