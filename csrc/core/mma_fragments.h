// Which element of a matrix each lane of a warp holds in which register, for the tensor-core
// products D[16][8] += A[16][k] B[k][8] of mma.sync and mma.sp (PTX ISA, "Matrix fragments for
// mma"). Lane l is number l % 4 of group l / 4. Packers, kernels and the emulator all read it from
// here.
//
//   A   register r of 4, 4 bytes: row l / 4 + 8 (r % 2), bytes 4 (l % 4) + 16 (r / 2) and up
//   B   register r, 4 bytes:      column l / 4,          bytes 4 (l % 4) + 16 r and up
//   D   register r of 4:          row l / 4 + 8 (r / 2), column 2 (l % 4) + r % 2
//
// Bytes count along k: rows of A and columns of B are 32 bytes in mma.sync. In mma.sp rows of A are
// 32 bytes of kept values, two of every four, and columns of B 64 bytes.
//
// Metadata of mma.sp says where in its four each kept value stood: 2 bits a value, in order, so 4
// bits for the two of a group of four. 32 groups of four ("nibbles") a lane pair and row:
//
//   int8   k = 64: lane l: row l / 4 + 8 (l % 2), nibbles 8 (l % 4 / 2) and up, 8 of 16
//   16-bit k = 32: lanes l with l % 4 / 2 == selector: low half row l / 4, high half row l / 4 + 8,
//                  nibbles 4 (l % 2) and up, 4 of 8
//
// So one word a lane holds a 16-bit layer's metadata for k = 64: selector 0 the first 32, 1 the
// others.
#pragma once

#ifdef __CUDACC__
#define SPARSE_RUNTIME_BOTH __host__ __device__
#else
#define SPARSE_RUNTIME_BOTH
#endif

namespace sparse_runtime::mma {

SPARSE_RUNTIME_BOTH constexpr int a_row(int lane, int r) {
  return lane / 4 + 8 * (r % 2);
}
SPARSE_RUNTIME_BOTH constexpr int a_byte(int lane, int r) {
  return 4 * (lane % 4) + 16 * (r / 2);
}
SPARSE_RUNTIME_BOTH constexpr int b_column(int lane) {
  return lane / 4;
}
SPARSE_RUNTIME_BOTH constexpr int b_byte(int lane, int r) {
  return 4 * (lane % 4) + 16 * r;
}
SPARSE_RUNTIME_BOTH constexpr int d_row(int lane, int r) {
  return lane / 4 + 8 * (r / 2);
}
SPARSE_RUNTIME_BOTH constexpr int d_column(int lane, int r) {
  return 2 * (lane % 4) + r % 2;
}

// A word of metadata for k = 64 has eight nibbles; where in A nibble n of a lane belongs.
// value_bytes is 1 (int8) or 2 (16-bit types).
SPARSE_RUNTIME_BOTH constexpr int meta_row(int lane, int nibble, int value_bytes) {
  return lane / 4 + 8 * (value_bytes == 1 ? lane % 2 : nibble / 4);
}
SPARSE_RUNTIME_BOTH constexpr int meta_group(int lane, int nibble, int value_bytes) {
  return value_bytes == 1 ? 8 * (lane % 4 / 2) + nibble : 4 * (lane % 4) + nibble % 4;
}

}  // namespace sparse_runtime::mma
