// Which token operations an instruction set runs.
#pragma once

#include "cpu/isa.h"
#include "cpu/token_ops/kernels.h"

namespace sparse_runtime::token_ops {

const Kernels& kernels_for(Isa isa);

}  // namespace sparse_runtime::token_ops
