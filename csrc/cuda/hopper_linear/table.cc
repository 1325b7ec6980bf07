#include "cuda/hopper_linear/table.h"

#include "cuda/hopper_linear/layout.h"

namespace sparse_runtime::hopper {

#define SPARSE_RUNTIME_TILES(KIND) \
  extern const Kernel k_##KIND##_128x256, k_##KIND##_128x128, k_##KIND##_64x128, k_##KIND##_64x32;
SPARSE_RUNTIME_TILES(int8_dense)
SPARSE_RUNTIME_TILES(int8_2to4)
SPARSE_RUNTIME_TILES(bf16_dense)
SPARSE_RUNTIME_TILES(bf16_2to4)
SPARSE_RUNTIME_TILES(f16_dense)
SPARSE_RUNTIME_TILES(f16_2to4)
#undef SPARSE_RUNTIME_TILES

namespace {

#define SPARSE_RUNTIME_TILES(KIND) \
  &k_##KIND##_128x256, &k_##KIND##_128x128, &k_##KIND##_64x128, &k_##KIND##_64x32,
const Kernel* const kKernels[] = {
    SPARSE_RUNTIME_TILES(int8_dense)  //
    SPARSE_RUNTIME_TILES(int8_2to4)   //
    SPARSE_RUNTIME_TILES(bf16_dense)  //
    SPARSE_RUNTIME_TILES(bf16_2to4)   //
    SPARSE_RUNTIME_TILES(f16_dense)   //
    SPARSE_RUNTIME_TILES(f16_2to4)    //
};
#undef SPARSE_RUNTIME_TILES
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]);

int float_bytes(int type) {
  return type == SR_F32 ? 4 : 2;
}

// Whether rows of `stride` elements from `p` on begin at multiples of `bytes`; null pointers do.
bool aligned(const void* p, std::int64_t stride, int element_bytes, int bytes) {
  return !p ||
         (reinterpret_cast<std::uintptr_t>(p) % bytes == 0 && stride * element_bytes % bytes == 0);
}

}  // namespace

int kernel_count() {
  return kCount;
}

const Kernel* kernel(int number) {
  return number < 0 || number >= kCount ? nullptr : kKernels[number];
}

bool rows_by_four(const SrLinear& p) {
  const int bytes = float_bytes(p.floats_type);
  return p.out_features % 4 == 0 && aligned(p.floats, p.floats_stride, bytes, 4 * bytes) &&
         aligned(p.residual, p.residual_stride, bytes, 4 * bytes) && aligned(p.q, p.q_stride, 1, 4);
}

int check(const Kernel& kernel, const SrLinear& p) {
  const int bytes = kernel.type == SR_INT8 ? 1 : 2;
  // TMA's, for x and for weights.
  if (!aligned(p.x, p.x_stride, bytes, 16) || !aligned(p.weight, 0, 1, 128)) return SR_INVALID;
  if (p.split_k > 1) {
    if (p.in_features % (std::int64_t{p.split_k} * kernel.tile_in) != 0) return SR_INVALID;
    if (!aligned(p.partials, 0, 1, 16)) return SR_INVALID;
  }
  return SR_OK;
}

cudaError_t launch(const Kernel& kernel, const SrLinear& layer, cudaStream_t stream) {
  int device = 0, processors = 0;
  auto error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  return kernel.launch(layer, processors, stream);
}

}  // namespace sparse_runtime::hopper
