// Weights as the wgmma kernels read them.
//
// dense:   values [out][inputs]. Rows are padded to whole tiles of inputs, 128 bytes each.
// 2 of 4:  values [out][inputs / 2], the two kept of every four, in order (mma_linear/weights.h
// says
//          which); then, from the next multiple of 128 bytes on, four bits a group of four: where
//          the two stood, first | second << 2. These lie in atoms of 64 outputs by one tile of
//          inputs, outputs varying fastest, outputs padded to whole atoms. Inside an atom, groups
//          (g) and outputs (o), eight groups of an output side by side being a word:
//            int8    (128 inputs)  [o: 64][g: 32]
//            16-bit  (64 inputs)   [o / 16: 4][g / 4 % 2][o % 8][g / 8: 2][o / 8 % 2][g % 4]
//          Sources: the PTX ISA's "sparse matrix storage" of wgmma, and the order in which CUTLASS
//          stores it (Sm90GemmSparseConfig); tests/cuda compares with the latter.
#pragma once

#include <cstdint>

#include "core/mma_fragments.h"

namespace sparse_runtime::hopper {

constexpr int kAtomOutputs = 64;

SPARSE_RUNTIME_BOTH constexpr int tile_inputs(int value_bytes) {
  return 128 / value_bytes;
}
SPARSE_RUNTIME_BOTH constexpr int round_up(int size, int multiple) {
  return (size + multiple - 1) / multiple * multiple;
}
SPARSE_RUNTIME_BOTH constexpr int padded_inputs(int inputs, int value_bytes) {
  return round_up(inputs, tile_inputs(value_bytes));
}

SPARSE_RUNTIME_BOTH constexpr std::int64_t metadata_offset(int outputs, int inputs,
                                                           int value_bytes) {
  const auto bytes = std::int64_t{outputs} * padded_inputs(inputs, value_bytes) / 2 * value_bytes;
  return (bytes + 127) / 128 * 128;
}
SPARSE_RUNTIME_BOTH constexpr std::int64_t packed_bytes(int outputs, int inputs, int value_bytes,
                                                        bool sparse) {
  const std::int64_t padded = padded_inputs(inputs, value_bytes);
  if (!sparse) return outputs * padded * value_bytes;
  return metadata_offset(outputs, inputs, value_bytes) +
         round_up(outputs, kAtomOutputs) * padded / 8;
}

// Which four bits, counted from metadata_offset, belong to a group of four inputs.
SPARSE_RUNTIME_BOTH constexpr std::int64_t metadata_nibble(int output, int group, int outputs,
                                                           int value_bytes) {
  const int each = tile_inputs(value_bytes) / 4;  // groups of an atom
  const std::int64_t atom =
      std::int64_t{group / each} * (round_up(outputs, kAtomOutputs) / kAtomOutputs) +
      output / kAtomOutputs;
  const int o = output % kAtomOutputs, g = group % each;
  const int inside = value_bytes == 1 ? o * 32 + g
                                      : o / 16 * 256 + g / 4 % 2 * 128 + o % 8 * 16 + g / 8 * 8 +
                                            o / 8 % 2 * 4 + g % 4;
  return atom * kAtomOutputs * each + inside;
}

}  // namespace sparse_runtime::hopper
