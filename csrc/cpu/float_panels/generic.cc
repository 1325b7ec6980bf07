#include "core/panels.h"
#include "cpu/float_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::float_panels {
namespace {

#include "cpu/simd.h"

constexpr int kWideGroups = 2;

// bf16 pairs without an instruction for them: the upper half of a word is a float already.
SIMD_INLINE F dot2(F acc, U x, U w) {
  acc = fma((F)(x << 16), (F)(w << 16), acc);
  return fma((F)(x & 0xffff0000u), (F)(w & 0xffff0000u), acc);
}

#include "cpu/float_panels/bands.h"

}  // namespace

extern const Kernels kGenericKernels;
const Kernels kGenericKernels = {{dense32, sparse32, dense16, nullptr}, peak32, peak16};

}  // namespace sparse_runtime::float_panels
