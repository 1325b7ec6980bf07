// csrc/cuda/mma_linear/pack_kernel.h on the host, a thread after the other, for test_cuda_nvrtc.py.
#define __global__
struct Place {
  int x, y;
};
static Place blockIdx, gridDim, threadIdx;
static int atomicAdd(int* to, int value) {
  return *to += value;
}

#include "cuda/mma_linear/pack_kernel.h"

using namespace sparse_runtime::mma;

template <typename Kernel>
static void everywhere(int grid_x, int grid_y, const Kernel& kernel) {
  gridDim = {grid_x, grid_y};
  for (blockIdx.y = 0; blockIdx.y < grid_y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < grid_x; ++blockIdx.x) {
      for (threadIdx.x = 0; threadIdx.x < 32; ++threadIdx.x) kernel();
    }
  }
}

// Grids and arguments are the caller's, as those of a launch are.
extern "C" void pack_1(int x, int y, Matrix<const std::uint8_t>* matrix, bool* sparse,
                       unsigned char** to, std::int32_t** misfits) {
  everywhere(x, y, [&] { pack_kernel<std::uint8_t>(*matrix, *sparse, *to, *misfits); });
}
extern "C" void pack_2(int x, int y, Matrix<const std::uint16_t>* matrix, bool* sparse,
                       unsigned char** to, std::int32_t** misfits) {
  everywhere(x, y, [&] { pack_kernel<std::uint16_t>(*matrix, *sparse, *to, *misfits); });
}
extern "C" void unpack_1(int x, int y, const unsigned char** from, bool* sparse,
                         Matrix<std::uint8_t>* matrix) {
  everywhere(x, y, [&] { unpack_kernel<std::uint8_t>(*from, *sparse, *matrix); });
}
extern "C" void unpack_2(int x, int y, const unsigned char** from, bool* sparse,
                         Matrix<std::uint16_t>* matrix) {
  everywhere(x, y, [&] { unpack_kernel<std::uint16_t>(*from, *sparse, *matrix); });
}
