// The instruction sets that kernel families are compiled for, and which of them can run here.
// A family has one translation unit per entry (csrc/cpu/<family>/<name>.cc), compiled with the
// flags that setup.py gives that name.
#pragma once

#include <array>
#include <string>
#include <string_view>

namespace sparse_runtime {

enum class Isa { kGeneric, kAvx2, kAvxVnni, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx };

// Ascending preference: "auto" takes the last one available. Each includes those before it, but
// kAvx512 and kAvx512Vnni do not include kAvxVnni. A family need not have a unit for each: it takes
// the best that the one asked for includes.
constexpr std::array<Isa, 7> kAllIsas = {Isa::kGeneric, Isa::kAvx2,       Isa::kAvxVnni,
                                         Isa::kAvx512,  Isa::kAvx512Vnni, Isa::kAvx512Bf16,
                                         Isa::kAmx};

// The environment variable that "auto" obeys, for tests and comparisons: a name of an instruction
// set, read once.
constexpr const char* kIsaVariable = "SPARSE_RUNTIME_ISA";

struct IsaStatus {
  const char* name;
  bool built;
  bool available;      // built, and this machine runs it
  std::string reason;  // why not available; empty when it is
};

IsaStatus isa_status(Isa isa);

// "auto" (the best available, or what SPARSE_RUNTIME_ISA says) or a name. Throws
// std::invalid_argument for an unknown name and std::runtime_error, with the reason, for an
// instruction set that cannot run here.
Isa resolve_isa(std::string_view name);

}  // namespace sparse_runtime
