// Index arithmetic of the INT8 device layout, shared by packer, unpacker and kernels.
//
//   packed[panel][group][lane][byte]   panel = n / 16, group = k / 4, lane = n % 16, byte = k % 4
//
// One (panel, group) cell is 64 bytes: one AVX-512 register of sixteen outputs times four inputs.
// Positions beyond n or k hold zero.
//
// Everything here has internal linkage: the translation units of different instruction sets
// include this file, and a function the linker may merge across them could carry AVX-512 code
// into the path of an older CPU.
#pragma once

#include <cstdint>

namespace sparse_runtime::int8_layout {

constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kGroup = 4;
constexpr std::int64_t kCellBytes = kLanes * kGroup;

// The largest k whose accumulator always fits int32: |x - zero_point| <= 255 and |w| <= 128, so
// |acc| <= 65536 * 255 * 128 = 2,139,095,040 < 2^31.
constexpr std::int64_t kMaxInputs = 65536;
constexpr std::int64_t kMaxOutputs = std::int64_t{1} << 31;

static constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

static constexpr std::int64_t panel_count(std::int64_t n) {
  return ceil_div(n, kLanes);
}

static constexpr std::int64_t group_count(std::int64_t k) {
  return ceil_div(k, kGroup);
}

static constexpr std::int64_t panel_bytes(std::int64_t k) {
  return group_count(k) * kCellBytes;
}

static constexpr std::int64_t weight_bytes(std::int64_t n, std::int64_t k) {
  return panel_count(n) * panel_bytes(k);
}

static constexpr std::int64_t row_sum_count(std::int64_t n) {
  return panel_count(n) * kLanes;
}

// Byte offset of the first of the (up to) four bytes that hold inputs 4*group .. 4*group+3 of n.
static constexpr std::int64_t cell_offset(std::int64_t n, std::int64_t group, std::int64_t k) {
  return (n / kLanes) * panel_bytes(k) + group * kCellBytes + (n % kLanes) * kGroup;
}

}  // namespace sparse_runtime::int8_layout
