// Launches on a GPU.
#include <string>

#include "cuda/mma_linear/pack_kernel.h"
#include "cuda/mma_linear/quantize_rows.h"
#include "cuda/mma_linear/table.h"

#ifdef SPARSE_RUNTIME_HOPPER
#include "cuda/hopper_linear/table.h"
#endif

namespace {

thread_local std::string last_error;

int32_t outcome(cudaError_t error) {
  if (error == cudaSuccess) return SR_OK;
  cudaGetLastError();  // or the next pack would report it again
  last_error = std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  return SR_CUDA_ERROR;
}

cudaError_t launch(const sparse_runtime::mma::Kernel& kernel, SrLinear layer, cudaStream_t stream) {
  const auto* function = reinterpret_cast<const void*>(kernel.function);
  // More than 48 KB of shared memory has to be asked for; the call is cheap where it was before.
  const auto error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          kernel.shared_bytes);
  if (error != cudaSuccess) return error;
  const auto grid =
      sparse_runtime::mma::grid(kernel, layer.tokens, layer.out_features, layer.split_k);
  void* arguments[] = {&layer};
  return cudaLaunchKernel(function, dim3(grid.tiles, grid.splits), dim3(kernel.threads), arguments,
                          kernel.shared_bytes, stream);
}

cudaError_t quantize(const SrLinear& layer, cudaStream_t stream) {
  int device = 0, major = 0;
  auto error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute overlap;  // with the end of the launch before
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = layer.tokens;
  config.blockDim = sparse_runtime::mma::kQuantizeThreads;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = major >= 9 ? 1 : 0;
  return cudaLaunchKernelEx(&config, sparse_runtime::mma::quantize_kernel, layer);
}

// The end of sr_linear.
int32_t finish(cudaError_t error, const SrLinear& layer, cudaStream_t stream) {
  if (error == cudaSuccess && layer.scheme >= SR_SYMMETRIC) error = quantize(layer, stream);
  return outcome(error);
}

}  // namespace

extern "C" {

const char* sr_last_error(void) {
  return last_error.c_str();
}

int32_t sr_linear(int32_t number, const SrLinear* layer, void* stream) {
  if (layer->split_k < 1 || layer->tokens < 0) return SR_INVALID;
  auto* const on = static_cast<cudaStream_t>(stream);
#ifdef SPARSE_RUNTIME_HOPPER
  namespace hopper = sparse_runtime::hopper;
  if (const auto* found = hopper::kernel(number - sparse_runtime::mma::kernel_count())) {
    const int status = hopper::check(*found, *layer);
    if (status != SR_OK || layer->tokens == 0) return status;
    return finish(hopper::launch(*found, *layer, on), *layer, on);
  }
#endif
  const auto* kernel = sparse_runtime::mma::kernel(number);
  if (!kernel) return SR_NO_SUCH_KERNEL;
  if (kernel->structure == SR_EXACT && !layer->rest_places) return SR_INVALID;
  if (layer->tokens == 0) return SR_OK;
  return finish(launch(*kernel, *layer, on), *layer, on);
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
