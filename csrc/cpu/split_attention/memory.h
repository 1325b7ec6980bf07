// How a call divides its scratch memory. Plain declarations with internal linkage: every
// instruction set's unit includes this file.
//
// An operand is tiles of 1 KB, three for its parts one after the other.
#pragma once

#include <cstdint>

#include "cpu/panel_attention/kernels.h"

namespace sparse_runtime::split_attention {

namespace {

constexpr std::int64_t kParts = 3;
constexpr std::int64_t kStep = 32;              // bf16 in a row of a tile
constexpr std::int64_t kTileSize = 16 * kStep;  // bf16
constexpr std::int64_t kOperandSize = kParts * kTileSize;
constexpr std::int64_t kVectors = 2;  // of sixteen queries, that go together: a group
constexpr std::int64_t kGroups = 8;   // that share the operands of a block of keys

// Features of a head: as many products, each below 2^116, stay far from infinity.
constexpr std::int64_t kMostFeatures = 1024;

// Offsets in bytes, all multiples of 64.
struct Memory {
  std::int64_t padded;  // features of a head, in whole steps

  std::int64_t keys = 0;   // operands [key / 16][feature / 32]
  std::int64_t values;     // operands [key / 32][feature / 16]
  std::int64_t queries;    // operands [vector][feature / 32]
  std::int64_t weights;    // operands [vector][key / 32]
  std::int64_t scores[2];  // float [vector][key][16]
  std::int64_t sums;       // float [group][vector][feature][16]
  std::int64_t tops;       // float [group][vector][16]
  std::int64_t totals;     // the same
  std::int64_t bytes;

  explicit Memory(std::int64_t head_size) : padded((head_size + kStep - 1) / kStep * kStep) {
    constexpr std::int64_t kHalf = 2, kFloat = 4, kLanes = 16;
    const std::int64_t block = kHalf * kParts * panel_attention::kKeyBlock * padded;
    values = keys + block;
    queries = values + block;
    weights = queries + kHalf * kParts * kVectors * kLanes * padded;
    scores[0] = weights + kHalf * kParts * kVectors * kLanes * panel_attention::kKeyBlock;
    scores[1] = scores[0] + kFloat * kVectors * kLanes * panel_attention::kKeyBlock;
    sums = scores[1] + kFloat * kVectors * kLanes * panel_attention::kKeyBlock;
    tops = sums + kFloat * kGroups * kVectors * kLanes * padded;
    totals = tops + kFloat * kGroups * kVectors * kLanes;
    bytes = totals + kFloat * kGroups * kVectors * kLanes;
  }
};

}  // namespace
}  // namespace sparse_runtime::split_attention
