// The instructions that hand-written kernels use, one function each: PTX on a GPU, and on the host
// what the PTX ISA says of them, run by emulate/ (docs/kernels/cuda_emulation.md).
#pragma once

#include <cstdint>

#include "cuda/ptx/half.h"

#ifdef __CUDACC__
#define SPARSE_RUNTIME_DEVICE __device__ __forceinline__
#define SPARSE_RUNTIME_KERNEL __global__
#else
#define SPARSE_RUNTIME_DEVICE inline
#define SPARSE_RUNTIME_KERNEL inline
#include "cuda/ptx/ptx_host.h"
#endif

#ifdef __CUDACC__

namespace sparse_runtime::ptx {

SPARSE_RUNTIME_DEVICE int thread() {
  return threadIdx.x;
}
SPARSE_RUNTIME_DEVICE int block_x() {
  return blockIdx.x;
}
SPARSE_RUNTIME_DEVICE int block_y() {
  return blockIdx.y;
}

SPARSE_RUNTIME_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

SPARSE_RUNTIME_DEVICE std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

template <typename T>
SPARSE_RUNTIME_DEVICE T load(const T* p) {
  return *p;
}
template <typename T>
SPARSE_RUNTIME_DEVICE void store(T* p, T value) {
  *p = value;
}
template <typename T>
SPARSE_RUNTIME_DEVICE T load_shared(const T* p) {
  return *p;
}
template <typename T>
SPARSE_RUNTIME_DEVICE void store_shared(T* p, T value) {
  *p = value;
}

SPARSE_RUNTIME_DEVICE void sync_threads() {
  __syncthreads();
}
SPARSE_RUNTIME_DEVICE void sync_warp() {
  __syncwarp();
}

// 16 bytes from global to shared memory, of which those from `valid` on (0 or 16) are zeros.
SPARSE_RUNTIME_DEVICE void copy_async(void* shared, const void* global, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid)
               : "memory");
}
SPARSE_RUNTIME_DEVICE void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int GroupsInFlight>
SPARSE_RUNTIME_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GroupsInFlight) : "memory");
}

// Where a launch may begin before the one that it follows has ended: until that has.
SPARSE_RUNTIME_DEVICE void wait_for_previous_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Four matrices of 8 rows of 16 bytes: lane l brings the address of row l % 8 of matrix l / 8, and
// gets of matrix r in out[r] bytes 4 (l % 4) to 4 (l % 4) + 3 of row l / 4.
SPARSE_RUNTIME_DEVICE void load_matrices(std::uint32_t (&out)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

SPARSE_RUNTIME_DEVICE int shuffle_xor(int value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFU, value, mask);
}

// Adds to a counter; what this block wrote before, behind a barrier, is seen by whoever sees the
// sum, and the other way round.
SPARSE_RUNTIME_DEVICE int arrive(int* counter) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}
SPARSE_RUNTIME_DEVICE void raise(int* at, int value) {
  atomicMax(at, value);
}

SPARSE_RUNTIME_DEVICE float multiply(float a, float b) {
  return __fmul_rn(a, b);
}
SPARSE_RUNTIME_DEVICE float add(float a, float b) {
  return __fadd_rn(a, b);
}
// a b + c, rounded once.
SPARSE_RUNTIME_DEVICE float fused(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
SPARSE_RUNTIME_DEVICE float divide(float a, float b) {
  return __fdiv_rn(a, b);
}
SPARSE_RUNTIME_DEVICE float absolute(float x) {
  return fabsf(x);
}
// Half to even; beyond what an int holds, its limits; NaN: 0.
SPARSE_RUNTIME_DEVICE int nearest_integer(float x) {
  return __float2int_rn(x);
}
SPARSE_RUNTIME_DEVICE float round_half_even(float x) {
  return rintf(x);
}
SPARSE_RUNTIME_DEVICE float erf(float x) {
  return erff(x);
}
SPARSE_RUNTIME_DEVICE float exp(float x) {
  return expf(x);
}

// D += A B of mma_fragments.h.
SPARSE_RUNTIME_DEVICE void multiply_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                                       std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

SPARSE_RUNTIME_DEVICE void multiply_sparse_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                                              const std::uint32_t (&b)[4], std::uint32_t metadata) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, "
      "{%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 0x0;"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(metadata));
}

#define SPARSE_RUNTIME_MULTIPLY(TYPE, NAME)                                                     \
  SPARSE_RUNTIME_DEVICE void multiply(NAME, float (&d)[4], const std::uint32_t (&a)[4],         \
                                      std::uint32_t b0, std::uint32_t b1) {                     \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                         \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                   \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));               \
  }                                                                                             \
  template <int Selector>                                                                       \
  SPARSE_RUNTIME_DEVICE void multiply_sparse(NAME, float (&d)[4], const std::uint32_t (&a)[4],  \
                                             const std::uint32_t (&b)[4],                       \
                                             std::uint32_t metadata) {                          \
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE    \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), \
                   "r"(b[3]), "r"(metadata), "n"(Selector));                                    \
  }
SPARSE_RUNTIME_MULTIPLY("bf16", BF16)
SPARSE_RUNTIME_MULTIPLY("f16", F16)
#undef SPARSE_RUNTIME_MULTIPLY

}  // namespace sparse_runtime::ptx

#endif  // __CUDACC__
