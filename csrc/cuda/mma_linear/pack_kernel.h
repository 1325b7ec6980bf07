// Packing and unpacking on the GPU, a lane of a slab a thread; for nvcc and NVRTC.
#pragma once

#include "cuda/mma_linear/weights.h"

namespace sparse_runtime::mma {

// Grid: (slabs, tiles), 32 threads each.
template <typename T>
__global__ void pack_kernel(Matrix<const T> matrix, bool sparse, unsigned char* to,
                            std::int32_t* misfits) {
  const int slab = blockIdx.x, tile = blockIdx.y, lane = threadIdx.x;
  const auto at =
      (static_cast<std::int64_t>(tile) * gridDim.x + slab) * slab_bytes(sizeof(T), sparse);
  if (!pack_lane(matrix, sparse, tile, slab, lane, to + at)) atomicAdd(misfits, 1);
}

// The inverse; `matrix` is zeros before.
template <typename T>
__global__ void unpack_kernel(const unsigned char* from, bool sparse, Matrix<T> matrix) {
  const int slab = blockIdx.x, tile = blockIdx.y, lane = threadIdx.x;
  const auto at =
      (static_cast<std::int64_t>(tile) * gridDim.x + slab) * slab_bytes(sizeof(T), sparse);
  unpack_lane(from + at, sparse, tile, slab, lane, matrix);
}

}  // namespace sparse_runtime::mma
