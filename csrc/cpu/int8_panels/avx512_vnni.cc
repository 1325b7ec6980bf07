#include "core/panels.h"
#include "cpu/int8_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::int8_panels {
namespace {

#include "cpu/simd.h"

constexpr int kRegisterLanes = 64;

SIMD_INLINE I dot4(I acc, U x, U w) {
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
}

#include "cpu/int8_panels/bands.h"

}  // namespace

extern const Kernels kAvx512VnniKernels;
const Kernels kAvx512VnniKernels = kBandKernels;

}  // namespace sparse_runtime::int8_panels
