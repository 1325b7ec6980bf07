// The instruction sets that kernel families are compiled for, and which of them can run here.
// A family has one translation unit per entry (csrc/cpu/<family>/<name>.cc), compiled with the
// flags that setup.py gives that name.
#pragma once

#include <array>
#include <string>
#include <string_view>

namespace sparse_runtime {

enum class Isa { kGeneric, kAvx2, kAvx512Vnni };

// Ascending preference: "auto" takes the last one available.
constexpr std::array<Isa, 3> kAllIsas = {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512Vnni};

struct IsaStatus {
  const char* name;
  bool built;
  bool available;      // built, and this machine runs it
  std::string reason;  // why not available; empty when it is
};

IsaStatus isa_status(Isa isa);

// "auto" or a name. Throws std::invalid_argument for an unknown name and std::runtime_error, with
// the reason, for an instruction set that cannot run here.
Isa resolve_isa(std::string_view name);

}  // namespace sparse_runtime
