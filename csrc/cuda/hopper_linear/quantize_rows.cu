// Rows to int8 by the ranges that a kernel's tiles have raised. A launch of its own: the last tile
// of some rows would do it with one processor, where all of them are free, and its few threads
// would wait for memory most of the time.
#include "cuda/hopper_linear/table.h"
#include "cuda/mma_linear/epilogue.h"

namespace sparse_runtime::hopper {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) quantize_kernel(const SrLinear p) {
  // The launch may overlap the end of the one that it follows.
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const int token = blockIdx.x;
  const mma::RowScale row = mma::scale_of(p.ranges[token], p.ranges[p.tokens + token], p.scheme);
  const auto from = token * p.floats_stride, to = token * p.q_stride;
#pragma unroll 8
  for (int output = threadIdx.x; output < p.out_features; output += kThreads) {
    p.q[to + output] = mma::quantize_dynamic(
        mma::load_float(p.floats, from + output, p.floats_type), row, p.scheme);
  }
  __syncthreads();  // every thread has read the ranges
  if (threadIdx.x != 0) return;
  p.scale[token] = row.scale;
  if (p.zero) p.zero[token] = row.zero;
  p.ranges[token] = p.ranges[p.tokens + token] = 0;
}

}  // namespace

cudaError_t quantize_ranged_rows(const SrLinear& layer, cudaStream_t stream) {
  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = layer.tokens;
  config.blockDim = kThreads;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, quantize_kernel, layer);
}

}  // namespace sparse_runtime::hopper
