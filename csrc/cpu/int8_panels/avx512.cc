#include "core/panels.h"
#include "cpu/int8_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::int8_panels {
namespace {

#include "cpu/simd.h"

constexpr int kRegisterLanes = 64;

// Bytes 0 and 2, then 1 and 3, as 16-bit numbers: vpmaddubsw would saturate.
SIMD_INLINE I dot4(I acc, U x, U w) {
  const auto weights = (__m512i)w;
  const __m512i even_w = _mm512_srai_epi16(_mm512_slli_epi16(weights, 8), 8);
  const __m512i odd_w = _mm512_srai_epi16(weights, 8);
  const __m512i even = _mm512_and_si512((__m512i)x, _mm512_set1_epi16(0xff));
  const __m512i odd = _mm512_srli_epi16((__m512i)x, 8);
  acc += (I)_mm512_madd_epi16(even, even_w);
  return acc + (I)_mm512_madd_epi16(odd, odd_w);
}

#include "cpu/int8_panels/bands.h"

}  // namespace

extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels = kBandKernels;

}  // namespace sparse_runtime::int8_panels
