// Launches on a GPU.
#include <string>

#include "cuda/mma_linear/pack_kernel.h"
#include "cuda/mma_linear/table.h"

#ifdef SPARSE_RUNTIME_HOPPER
#include "cuda/hopper_linear/table.h"
#endif

namespace {

thread_local std::string last_error;

int32_t outcome(cudaError_t error) {
  if (error == cudaSuccess) return SR_OK;
  last_error = std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  return SR_CUDA_ERROR;
}

}  // namespace

extern "C" {

const char* sr_last_error(void) {
  return last_error.c_str();
}

int32_t sr_linear(int32_t number, const SrLinear* layer, void* stream) {
  if (layer->split_k < 1 || layer->tokens < 0) return SR_INVALID;
#ifdef SPARSE_RUNTIME_HOPPER
  namespace hopper = sparse_runtime::hopper;
  if (const auto* found = hopper::kernel(number - sparse_runtime::mma::kernel_count())) {
    const int status = hopper::check(*found, *layer);
    if (status != SR_OK || layer->tokens == 0) return status;
    return outcome(hopper::launch(*found, *layer, static_cast<cudaStream_t>(stream)));
  }
#endif
  const auto* kernel = sparse_runtime::mma::kernel(number);
  if (!kernel) return SR_NO_SUCH_KERNEL;
  if (kernel->structure == SR_EXACT && !layer->rest_places) return SR_INVALID;
  if (layer->tokens == 0) return SR_OK;
  const auto* function = reinterpret_cast<const void*>(kernel->function);
  // More than 48 KB of shared memory has to be asked for; the call is cheap where it was before.
  const auto error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          kernel->shared_bytes);
  if (error != cudaSuccess) return outcome(error);
  const auto grid =
      sparse_runtime::mma::grid(*kernel, layer->tokens, layer->out_features, layer->split_k);
  SrLinear copy = *layer;
  void* arguments[] = {&copy};
  return outcome(cudaLaunchKernel(function, dim3(grid.tiles, grid.splits), dim3(kernel->threads),
                                  arguments, kernel->shared_bytes,
                                  static_cast<cudaStream_t>(stream)));
}

int32_t sr_pack_weight_device(int32_t type, int32_t structure, const void* values, int32_t outputs,
                              int32_t inputs, void* packed, int32_t* misfits, void* stream) {
  using namespace sparse_runtime::mma;
  if (sr_packed_bytes(type, structure, outputs, inputs) == 0) return SR_INVALID;
  const bool sparse = structure == SR_TWO_OF_FOUR;
  const dim3 grid(slabs(inputs), tiles(outputs));
  auto* const to = static_cast<unsigned char*>(packed);
  auto* const on = static_cast<cudaStream_t>(stream);
  if (type == SR_INT8) {
    pack_kernel<std::uint8_t><<<grid, 32, 0, on>>>(
        {static_cast<const std::uint8_t*>(values), outputs, inputs}, sparse, to, misfits);
  } else {
    pack_kernel<std::uint16_t><<<grid, 32, 0, on>>>(
        {static_cast<const std::uint16_t*>(values), outputs, inputs}, sparse, to, misfits);
  }
  return outcome(cudaGetLastError());
}

}  // extern "C"
