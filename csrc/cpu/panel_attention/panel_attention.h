// Which attention kernel an instruction set runs, and the memory it needs.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/panel_attention/kernels.h"

namespace sparse_runtime::panel_attention {

using Attend = void (*)(const Problem& problem, const Call& call);

// The kernel of `form` that `isa` runs: its own or that of a set it includes; null if none does.
Attend attend_for(Isa isa, Form form);

// What it needs. The same for any length: keys are taken block by block.
std::int64_t scratch_bytes(Isa isa, Form form, std::int64_t head_size);

}  // namespace sparse_runtime::panel_attention
