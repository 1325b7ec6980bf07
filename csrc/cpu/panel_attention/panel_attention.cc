#include "cpu/panel_attention/panel_attention.h"

#include <algorithm>

#include "core/panels.h"
#include "cpu/panel_attention/int8_memory.h"
#include "cpu/split_attention/kernels.h"
#include "cpu/split_attention/memory.h"

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

#ifdef SPARSE_RUNTIME_HAS_AMX
// Keys and values are split once a call, whole steps of features at a time.
bool pays_to_split(const Problem& problem, const Call& call) {
  constexpr std::int64_t kFewQueries = 96;  // of 64 as many are as fast, of 32 slower
  return call.queries >= kFewQueries && problem.head_size <= split_attention::kMostFeatures &&
         3 * split_attention::Memory(problem.head_size).padded <= 4 * problem.head_size;
}

void attend_split_or_float(const Problem& problem, const Call& call) {
  if (pays_to_split(problem, call) && split_attention::kAmxKernels.attend(problem, call)) return;
  vectors_for(Isa::kAmx).attend_float(problem, call);
}
#endif

}  // namespace

Attend attend_for(Isa isa, Form form) {
#ifdef SPARSE_RUNTIME_HAS_AMX
  if (isa == Isa::kAmx && form == Form::kFloat) return attend_split_or_float;
  if (isa == Isa::kAmx && form == Form::kBf16) return kAmxKernels.attend_bf16;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX512_BF16
  if (isa >= Isa::kAvx512Bf16 && form == Form::kBf16) return kAvx512Bf16Kernels.attend_bf16;
#endif
  if (form == Form::kFloat) return vectors_for(isa).attend_float;
  if (form == Form::kInt8) return vectors_for(isa).attend_int8;
  return nullptr;
}

std::int64_t scratch_bytes(Isa isa, Form form, std::int64_t head_size) {
  constexpr std::int64_t kFloat = sizeof(float), kHalf = sizeof(std::uint16_t), kStep = 32;
  if (form == Form::kInt8) return Int8Memory(head_size).bytes;
  if (form == Form::kBf16) {
    const std::int64_t padded = (head_size + kStep - 1) / kStep * kStep;
    return kHalf * kKeyBlock * padded + kFloat * 2 * kKeyBlock * 16 + kHalf * 2 * padded * kStep +
           kFloat * 3 * padded * 16;
  }
  const std::int64_t bytes = kFloat * (kKeyBlock + head_size) * panels::kSlots;
#ifdef SPARSE_RUNTIME_HAS_AMX
  if (isa == Isa::kAmx && head_size <= split_attention::kMostFeatures) {
    return std::max(bytes, split_attention::Memory(head_size).bytes);
  }
#endif
  static_cast<void>(isa);
  return bytes;
}

}  // namespace sparse_runtime::panel_attention
