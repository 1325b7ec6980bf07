// The band layouts over vectors of any width; each instruction set's unit includes this file within
// its anonymous namespace, after cpu/simd.h and a definition of
//
//   I dot4(I acc, U x, U w)        acc + the four products of each lane's bytes, x unsigned and w
//                                  signed
//   constexpr int kRegisterLanes   slots that the rows of a band hold in registers at a time
//
// Accumulators stay in registers for a whole band: kBand rows times kGroups lane groups. Rows of
// their own are taken four at a time, for their sums alone would wait for each other.

#include "cpu/peak_loop.h"

constexpr int kPanelSlots = panels::kSlots;

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// Calls multiply(Count of lane groups, first slot of them), as few times as registers allow.
template <typename Multiply>
SIMD_INLINE void over_slots(int vectors, const Multiply& multiply) {
  static_assert(kRegisterLanes <= 16 || kRegisterLanes == 64);  // one pass takes all that are left
  constexpr int kMost = kRegisterLanes / kLanes;
  int slot = 0;
  for (; slot + kRegisterLanes <= vectors * 16; slot += kRegisterLanes) {
    multiply(Count<kMost>{}, slot);
  }
  if constexpr (kRegisterLanes > 16) {
    if (vectors == 3) multiply(Count<3 * 16 / kLanes>{}, slot);
    if (vectors == 2) multiply(Count<2 * 16 / kLanes>{}, slot);
    if (vectors == 1) multiply(Count<16 / kLanes>{}, slot);
  }
}

// A dense weight comes from beyond the core's caches, and the hardware's prefetcher starts anew on
// every page.
constexpr std::int64_t kAhead = 4096;

SIMD_INLINE void fetch_ahead(const std::int8_t* values, const std::uint16_t* index) {
  __builtin_prefetch(values + kAhead / 2);
  __builtin_prefetch(index + kAhead / 4);
}

// clang-format off: band1.h interleaves as band4.h does
#include "cpu/int8_panels/band4.h"
#include "cpu/int8_panels/band1.h"
// clang-format on

std::int64_t peak(std::int64_t rounds) {
  const auto product = [](I sum, U x, int i) {
    return dot4(sum, x, spread(0x05fb7d81 + 0x010203 * i));
  };
  return peak_loop<I>(rounds, product) * (2 * 4 * kLanes);
}

constexpr Kernels kBandKernels = {{band4_grouped<true>, band4_grouped<false>, band4_gathered,
                                   band1<false>, band1<true>, nullptr, nullptr},
                                  peak};
