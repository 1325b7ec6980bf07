// How fast one product instruction is by itself: a loop over operands in registers. To be included
// inside an anonymous namespace, after cpu/simd.h.

// 12 sums hide the latency of every set and leave registers for the operands.
constexpr int kPeakSums = 12;

// product(sum, lanes, i) on whole vectors, its other operand of its own for each i: the compiler
// would compute what is equal once. Returns how many were done.
template <typename Sum, typename Product>
SIMD_INLINE std::int64_t peak_loop(std::int64_t rounds, Product product) {
  alignas(64) std::uint32_t lanes[2 * kLanes];
  for (int i = 0; i < 2 * kLanes; ++i) lanes[i] = 0x3f8140c1u + 0x10203u * i;
  // Arrays become registers only where every loop over them is unrolled.
  Sum sums[kPeakSums];
  _Pragma("GCC unroll 16") for (int i = 0; i < kPeakSums; ++i) sums[i] = Sum{};
  for (std::int64_t round = 0; round < rounds; ++round) {
    // Two vectors are read again each round, or the compiler would take work out of the loop.
    asm volatile("" ::"r"(lanes) : "memory");
    const U x[2] = {load<U>(lanes), load<U>(lanes + kLanes)};
    _Pragma("GCC unroll 16") for (int i = 0; i < kPeakSums; ++i) {
      sums[i] = product(sums[i], x[i % 2], i);
    }
  }
  Sum total = sums[0];
  _Pragma("GCC unroll 16") for (int i = 1; i < kPeakSums; ++i) total += sums[i];
  store(lanes, total);
  asm volatile("" ::"r"(lanes) : "memory");
  return rounds * kPeakSums;
}
