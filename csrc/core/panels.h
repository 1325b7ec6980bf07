// The layouts of activations inside the encoder: feature-major panels of 64 token slots.
//
// Token t of a stream lies in panel t / filled, slot t % filled; filled is 64, or 16 or 32 where
// few tokens share out better so. Sequences follow each other without padding; slots beyond
// `filled` or the last token hold unspecified values.
//
//   floats    float [panel][feature][slot]
//   grouped   uint8 [panel][k / 4][slot][k % 4]        what dpbusd and AMX tiles read
//   plain     uint8 [panel][k][byte_of_slot(slot)]     four rows interleave to one group by unpacks
//   pairs     bf16  [panel][feature / 2][slot][feature % 2]     what dpbf16ps and AMX tiles read
//   halves    bf16  [panel][feature][slot]
//
// byte_of_slot is the order in which a 128-bit-lane-wise pack of four registers of 32-bit lanes
// leaves its bytes: quantizing needs no permutation, and neither has interleaving four plain rows
// (unpack bytes, then 16-bit words), whose register j then holds slots 16 j .. 16 j + 15 in order.
//
// Features are padded to whole kFeatureBlock in grouped, plain and pairs: the padding is zero.
#pragma once

#include <cstdint>

namespace sparse_runtime::panels {

constexpr int kSlots = 64;
constexpr int kVector = 16;  // slots whose 32-bit lanes fill 512 bits
constexpr int kVectors = kSlots / kVector;
constexpr std::int64_t kFeatureBlock = 64;

static constexpr int byte_of_slot(int slot) {
  const int vector = slot / 16, lane = (slot % 16) / 4;
  return 16 * lane + 4 * vector + slot % 4;
}

static constexpr std::int64_t panel_count(std::int64_t tokens, std::int64_t filled = kSlots) {
  return (tokens + filled - 1) / filled;
}

static constexpr std::int64_t padded_features(std::int64_t features) {
  return (features + kFeatureBlock - 1) / kFeatureBlock * kFeatureBlock;
}

// Sizes of one panel.
static constexpr std::int64_t floats_in_panel(std::int64_t features) {
  return features * kSlots;
}

static constexpr std::int64_t bytes_in_panel(std::int64_t features) {  // grouped and plain
  return padded_features(features) * kSlots;
}

static constexpr std::int64_t bf16_in_panel(std::int64_t features) {  // pairs, halves; elements
  return padded_features(features) * kSlots;
}

// Whether a weight [rows, k] may be that of queries, keys and values together. Attention takes the
// rows of a head, so what holds rows together should not cross one: 64 rows at most.
static constexpr bool may_project_heads(std::int64_t rows, std::int64_t k) {
  return rows > k && rows <= 3 * k;
}

}  // namespace sparse_runtime::panels
