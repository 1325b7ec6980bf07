// Rows to int8 by the ranges that a kernel's tiles have raised. A launch of its own: the last tile
// of some rows would do it with one processor, where all of them are free, and its few threads
// would wait for memory most of the time.
#pragma once

#include "cuda/mma_linear/epilogue.h"

namespace sparse_runtime::mma {

constexpr int kQuantizeThreads = 128;

// Grid: a block a token. Ranges become zeros.
SPARSE_RUNTIME_KERNEL void
#ifdef __CUDACC__
__launch_bounds__(kQuantizeThreads)
#endif
    quantize_kernel(const SrLinear p) {
  ptx::wait_for_previous_launch();
  const int token = ptx::block_x();
  const RowScale row =
      scale_of(ptx::load(p.ranges + token), ptx::load(p.ranges + p.tokens + token), p.scheme);
  const auto from = token * p.floats_stride, to = token * p.q_stride;
  // Loads before the first store, which the compiler moves none beyond.
  constexpr int at_once = 8;
  for (int first = ptx::thread(); first < p.out_features; first += kQuantizeThreads * at_once) {
    std::uint32_t bits[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int output = first + kQuantizeThreads * i;
      if (output < p.out_features) bits[i] = load_bits(p.floats, from + output, p.floats_type);
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int output = first + kQuantizeThreads * i;
      if (output >= p.out_features) break;
      const float y = float_of_bits(bits[i], p.floats_type);
      ptx::store(p.q + to + output, quantize_dynamic(y, row, p.scheme));
    }
  }
  ptx::sync_threads();  // every thread has read the ranges
  if (ptx::thread() != 0) return;
  ptx::store(p.scale + token, row.scale);
  if (p.zero) ptx::store(p.zero + token, row.zero);
  ptx::store(p.ranges + token, 0);
  ptx::store(p.ranges + p.tokens + token, 0);
}

}  // namespace sparse_runtime::mma
