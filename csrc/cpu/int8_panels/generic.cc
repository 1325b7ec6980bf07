#include "core/panels.h"
#include "cpu/int8_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::int8_panels {
namespace {

#include "cpu/simd.h"

constexpr int kRegisterLanes = 8;

SIMD_INLINE I dot4(I acc, U x, std::int32_t w) {
  for (int i = 0; i < 4; ++i) {
    const auto weight = static_cast<std::int8_t>(static_cast<std::uint32_t>(w) >> (8 * i));
    acc += (I)(x >> (8 * i) & 0xffu) * weight;
  }
  return acc;
}

#include "cpu/int8_panels/bands.h"

}  // namespace

extern const Kernels kGenericKernels;
const Kernels kGenericKernels = kBandKernels;

}  // namespace sparse_runtime::int8_panels
