// How an int8 call divides its scratch memory. Plain declarations with internal linkage: every
// instruction set's unit includes this file.
#pragma once

#include <cstdint>

#include "core/panels.h"
#include "cpu/int8_panels/kernels.h"

namespace sparse_runtime::panel_attention {

// Keys of one block: 512 that begin anywhere in a vector, in whole row blocks.
constexpr std::int64_t kInt8KeyBlock = 544;
static_assert(kInt8KeyBlock % int8_panels::kRowBlock == 0);
static_assert(kInt8KeyBlock >= 512 + panels::kVector - 1);

namespace {

// Offsets in bytes, all multiples of 64.
struct Int8Memory {
  std::int64_t groups;      // of four features of a head
  std::int64_t value_rows;  // features, in whole row blocks

  std::int64_t kernel = 0;  // the product's own
  std::int64_t queries;     // uint8 [groups][64][4]
  std::int64_t keys;        // int8 [keys / 4][groups][4 keys][4 features]
  std::int64_t values;      // int8 [features / 4][keys / 4][4 features][4 keys]
  std::int64_t weights;     // uint8 [keys / 4][64][4]
  std::int64_t scores;      // int32, then float [keys][64]
  std::int64_t context;     // int32 [features][64], of a block
  std::int64_t sums;        // the same, of all blocks
  std::int64_t key_terms;   // int32 [keys]
  std::int64_t value_sums;  // int32 [features]
  std::int64_t starts;      // int32: where the units of each band begin
  std::int64_t bytes;

  explicit Int8Memory(std::int64_t head_size)
      : groups((head_size + 3) / 4),
        value_rows((head_size + int8_panels::kRowBlock - 1) / int8_panels::kRowBlock *
                   int8_panels::kRowBlock) {
    constexpr std::int64_t kWord = 4, kRow = panels::kSlots * kWord;
    queries = kernel + int8_panels::kScratchBytes;
    keys = queries + groups * kRow;
    values = keys + kInt8KeyBlock * rounded(groups * kWord);
    weights = values + kInt8KeyBlock * value_rows;
    scores = weights + kInt8KeyBlock * panels::kSlots;
    context = scores + kInt8KeyBlock * kRow;
    sums = context + value_rows * kRow;
    key_terms = sums + value_rows * kRow;
    value_sums = key_terms + kInt8KeyBlock * kWord;
    starts = value_sums + rounded(value_rows * kWord);
    const std::int64_t rows = kInt8KeyBlock > value_rows ? kInt8KeyBlock : value_rows;
    bytes = starts + rounded((rows / 4 + 1) * kWord);
  }

  static std::int64_t rounded(std::int64_t size) { return (size + 63) / 64 * 64; }
};

}  // namespace
}  // namespace sparse_runtime::panel_attention
