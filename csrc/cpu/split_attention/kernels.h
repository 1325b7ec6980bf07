// Attention in float32 accuracy on a matrix unit that takes bf16: what one instruction set
// supplies. Plain declarations only.
#pragma once

#include <cstdint>

#include "cpu/panel_attention/kernels.h"

namespace sparse_runtime::split_attention {

// False where the values' range is one that the parts do not hold; what was written is not valid
// then. `problem` is of Form::kFloat.
struct Kernels {
  bool (*attend)(const panel_attention::Problem& problem, const panel_attention::Call& call);
};

extern const Kernels kAmxKernels;

}  // namespace sparse_runtime::split_attention
