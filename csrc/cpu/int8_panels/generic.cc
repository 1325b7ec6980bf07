#include "core/panels.h"
#include "cpu/int8_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::int8_panels {
namespace {

#include "cpu/simd.h"

constexpr int kRegisterLanes = 8;

SIMD_INLINE I dot4(I acc, U x, U w) {
  for (int i = 0; i < 4; ++i) {
    const I weight = (I)(w << (24 - 8 * i)) >> 24;
    acc += (I)(x >> (8 * i) & 0xffu) * weight;
  }
  return acc;
}

#include "cpu/int8_panels/bands.h"

}  // namespace

extern const Kernels kGenericKernels;
const Kernels kGenericKernels = kBandKernels;

}  // namespace sparse_runtime::int8_panels
