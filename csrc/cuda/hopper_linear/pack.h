// Packing on the host into the order of layout.h.
#pragma once

#include <cstdint>

namespace sparse_runtime::hopper {

// values [outputs][inputs] of value_bytes each, contiguous; `packed` has packed_bytes. False: a
// group of four inputs has more than two values whose bits are not all 0 (-0.0 of floats aside).
bool pack(int value_bytes, bool sparse, const void* values, int outputs, int inputs, void* packed);
// The inverse.
void unpack(int value_bytes, bool sparse, const void* packed, int outputs, int inputs,
            void* values);

}  // namespace sparse_runtime::hopper
