#include "core/panels.h"
#include "cpu/int8_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::int8_panels {
namespace {

#include "cpu/simd.h"

constexpr int kRegisterLanes = 16;

SIMD_INLINE I dot4(I acc, U x, U w) {
  return (I)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)x, (__m256i)w);
}

#include "cpu/int8_panels/bands.h"

}  // namespace

extern const Kernels kAvxVnniKernels;
const Kernels kAvxVnniKernels = kBandKernels;

}  // namespace sparse_runtime::int8_panels
