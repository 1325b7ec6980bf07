#include "core/panels.h"
#include "cpu/float_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::float_panels {
namespace {

#include "cpu/simd.h"

constexpr int kWideGroups = 4;

SIMD_INLINE F dot2(F acc, U x, U w) {
  return (F)_mm512_dpbf16_ps((__m512)acc, (__m512bh)x, (__m512bh)w);
}

#include "cpu/float_panels/bands.h"

}  // namespace

extern const Kernels kAvx512Bf16Kernels;
const Kernels kAvx512Bf16Kernels = {{dense32, sparse32, dense16, nullptr}, peak32, peak16};

}  // namespace sparse_runtime::float_panels
