#include "core/panels.h"
#include "cpu/int8_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::int8_panels {
namespace {

#include "cpu/simd.h"

constexpr int kRegisterLanes = 16;

// Bytes 0 and 2, then 1 and 3, as 16-bit numbers: vpmaddubsw would saturate.
SIMD_INLINE I dot4(I acc, U x, U w) {
  const auto weights = (__m256i)w;
  const __m256i even_w = _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8);
  const __m256i odd_w = _mm256_srai_epi16(weights, 8);
  const __m256i even = _mm256_and_si256((__m256i)x, _mm256_set1_epi16(0xff));
  const __m256i odd = _mm256_srli_epi16((__m256i)x, 8);
  acc += (I)_mm256_madd_epi16(even, even_w);
  return acc + (I)_mm256_madd_epi16(odd, odd_w);
}

#include "cpu/int8_panels/bands.h"

}  // namespace

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = kBandKernels;

}  // namespace sparse_runtime::int8_panels
