#include "cpu/panel_attention/panel_attention.h"

#include <algorithm>

#include "core/panels.h"
#include "cpu/panel_attention/int8_memory.h"

namespace sparse_runtime::panel_attention {
namespace {

const Kernels& vectors_for(Isa isa) {
#ifdef SPARSE_RUNTIME_HAS_AVX512
  if (isa >= Isa::kAvx512) return kAvx512Kernels;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX2
  if (isa >= Isa::kAvx2) return kAvx2Kernels;
#endif
  static_cast<void>(isa);
  return kGenericKernels;
}

}  // namespace

Attend attend_for(Isa isa, Form form) {
  if (form == Form::kFloat) return vectors_for(isa).attend_float;
  if (form == Form::kInt8) return vectors_for(isa).attend_int8;
#ifdef SPARSE_RUNTIME_HAS_AMX
  if (isa == Isa::kAmx) return kAmxKernels.attend_bf16;
#endif
  return nullptr;
}

std::int64_t scratch_bytes(std::int64_t head_size) {
  constexpr std::int64_t kFloat = sizeof(float), kHalf = sizeof(std::uint16_t), kStep = 32;
  const std::int64_t padded = (head_size + kStep - 1) / kStep * kStep;
  const std::int64_t in_float = kFloat * (kKeyBlock * panels::kSlots + head_size * panels::kSlots);
  // Keys, two steps of scores and of weights, values of two steps, two times four tiles of sums.
  const std::int64_t in_bf16 = kHalf * kKeyBlock * padded + kFloat * 2 * (kStep + kStep / 2) * 16 +
                               kHalf * 2 * padded * kStep + kFloat * 2 * 4 * 16 * 16;
  return std::max({in_float, in_bf16, Int8Memory(head_size).bytes});
}

}  // namespace sparse_runtime::panel_attention
