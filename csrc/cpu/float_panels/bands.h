// The float layouts over vectors of any width; each instruction set's unit includes this file
// within its anonymous namespace, after cpu/simd.h and a definition of
//
//   F dot2(F acc, U x, U w)      acc + both products of each lane's bf16 pairs
//   constexpr int kWideGroups    lane groups whose sums for kBand rows fit the registers

#include "cpu/peak_loop.h"

constexpr int kPanelSlots = panels::kSlots;

SIMD_INLINE void add_to(float* acc, F sum, bool first) {
  store(acc, first ? sum : load<F>(acc) + sum);
}

// Chains of sums side by side: few lane groups leave registers for them, and need them to hide the
// latency.
constexpr int chains_of(int groups) {
  return groups >= 4 ? 1 : groups >= 2 ? 2 : 4;
}

template <int kGroups>
SIMD_INLINE void dense32_band(const float* values, const float* x, std::int64_t inputs, bool first,
                              float* acc) {
  // Each block has a sum of its own: the error of a sum grows with its length.
  constexpr int kChains = chains_of(kGroups);
  F sums[kChains][kBand][kGroups] = {};
  const auto add = [&](std::int64_t i, int chain) __attribute__((always_inline)) {
    F input[kGroups];
    for (int g = 0; g < kGroups; ++g) input[g] = load<F>(x + i * kPanelSlots + g * kLanes);
    for (int r = 0; r < kBand; ++r) {
      const F w = splat(values[i * kBand + r]);
      for (int g = 0; g < kGroups; ++g) {
        sums[chain][r][g] = fma(w, input[g], sums[chain][r][g]);
      }
    }
  };
  std::int64_t i = 0;
  for (; i + kChains <= inputs; i += kChains) {
    for (int c = 0; c < kChains; ++c) add(i + c, c);
  }
  for (; i < inputs; ++i) add(i, 0);
  for (int r = 0; r < kBand; ++r) {
    for (int g = 0; g < kGroups; ++g) {
      F sum = sums[0][r][g];
      for (int c = 1; c < kChains; ++c) sum = sum + sums[c][r][g];
      add_to(acc + r * kPanelSlots + g * kLanes, sum, first);
    }
  }
}

// Rows of a call for the inputs of one block and some lane groups.
template <int kGroups>
void dense32_rows(const WeightView& w, const Call& call, const float* x, std::int64_t block,
                  std::int64_t inputs, float* acc) {
  for (std::int64_t r = 0; r < call.rows; r += kBand) {
    const float* values = w.floats + ((call.row + r) * w.k + block * kBand);
    dense32_band<kGroups>(values, x + block * kPanelSlots, inputs, block == 0,
                          acc + r * kPanelSlots);
  }
}

template <int kGroups>
void sparse32_rows(const WeightView& w, const Call& call, const float* x, std::int64_t block,
                   std::int64_t, float* acc) {
  for (std::int64_t r = 0; r < call.rows; ++r) {
    const std::int64_t at = block / kInputBlock * w.n + call.row + r;
    const std::int32_t end = w.starts[at + 1];
    float* sums_at = acc + r * kPanelSlots;
    // Two units at a time: one row's sums are too few to hide the latency.
    F sums[2][kGroups] = {};
    std::int32_t u = w.starts[at];
    for (; u + 2 <= end; u += 2) {
      for (int c = 0; c < 2; ++c) {
        const F value = splat(w.floats[u + c]);
        const float* input = x + w.index[u + c] * kPanelSlots;
        for (int g = 0; g < kGroups; ++g) {
          sums[c][g] = fma(value, load<F>(input + g * kLanes), sums[c][g]);
        }
      }
    }
    for (; u < end; ++u) {
      const float* input = x + w.index[u] * kPanelSlots;
      for (int g = 0; g < kGroups; ++g) {
        sums[0][g] = fma(splat(w.floats[u]), load<F>(input + g * kLanes), sums[0][g]);
      }
    }
    for (int g = 0; g < kGroups; ++g) {
      add_to(sums_at + g * kLanes, sums[0][g] + sums[1][g], block == 0);
    }
  }
}

// Pairs: twice the inputs in as many bytes.
template <int kGroups>
void dense16_rows(const WeightView& w, const Call& call, const float* x, std::int64_t block,
                  std::int64_t inputs, float* acc) {
  const std::int64_t pairs = (w.k + 1) / 2;
  for (std::int64_t r = 0; r < call.rows; r += kBand) {
    const std::uint16_t* values = w.halves + 2 * ((call.row + r) * pairs + block / 2 * kBand);
    float* to = acc + r * kPanelSlots;
    F sums[kBand][kGroups] = {};
    for (std::int64_t i = 0; i < (inputs + 1) / 2; ++i) {
      U input[kGroups];
      for (int g = 0; g < kGroups; ++g) {
        input[g] = load<U>(x + (block / 2 + i) * kPanelSlots + g * kLanes);
      }
      for (int b = 0; b < kBand; ++b) {
        std::uint32_t pair;
        __builtin_memcpy(&pair, values + (i * kBand + b) * 2, sizeof(pair));
        const U weight = (U{} + pair);
        for (int g = 0; g < kGroups; ++g) sums[b][g] = dot2(sums[b][g], input[g], weight);
      }
    }
    for (int b = 0; b < kBand; ++b) {
      for (int g = 0; g < kGroups; ++g) {
        add_to(to + b * kPanelSlots + g * kLanes, sums[b][g], block == 0);
      }
    }
  }
}

using Rows = void (*)(const WeightView& w, const Call& call, const float* x, std::int64_t block,
                      std::int64_t inputs, float* acc);

// All panels, lane groups and blocks of inputs of a call, by the widest of `rows` that fits.
SIMD_INLINE void over_call(const WeightView& w, const Call& call, Rows wide, Rows two, Rows one) {
  for (int p = 0; p < call.panels; ++p) {
    const auto* x =
        reinterpret_cast<const float*>(static_cast<const char*>(call.x) + p * call.panel_stride);
    float* acc = call.acc + p * call.rows * kPanelSlots;
    const int slots = p + 1 == call.panels ? call.last_vectors * 16 : kPanelSlots;
    // No inputs at all are one empty block: the sums are zero.
    for (std::int64_t block = 0; block == 0 || block < w.k; block += kInputBlock) {
      const std::int64_t left = w.k - block;
      const std::int64_t inputs = left < kInputBlock ? left : kInputBlock;
      int slot = 0;
      for (; slot + kWideGroups * kLanes <= slots; slot += kWideGroups * kLanes) {
        wide(w, call, x + slot, block, inputs, acc + slot);
      }
      for (; slot + 2 * kLanes <= slots; slot += 2 * kLanes) {
        two(w, call, x + slot, block, inputs, acc + slot);
      }
      for (; slot < slots; slot += kLanes) one(w, call, x + slot, block, inputs, acc + slot);
    }
  }
}

void dense32(const WeightView& w, const Call& call) {
  over_call(w, call, dense32_rows<kWideGroups>, dense32_rows<2>, dense32_rows<1>);
}

void sparse32(const WeightView& w, const Call& call) {
  if (w.k == 0) return dense32(w, call);
  over_call(w, call, sparse32_rows<kWideGroups>, sparse32_rows<2>, sparse32_rows<1>);
}

void dense16(const WeightView& w, const Call& call) {
  over_call(w, call, dense16_rows<kWideGroups>, dense16_rows<2>, dense16_rows<1>);
}

std::int64_t peak32(std::int64_t rounds) {
  const auto product = [](F sum, U x, int i) {
    return fma((F)x, splat(0.5f + 0.01f * static_cast<float>(i)), sum);
  };
  return peak_loop<F>(rounds, product) * (2 * kLanes);
}

std::int64_t peak16(std::int64_t rounds) {
  const auto product = [](F sum, U x, int i) {
    return dot2(sum, x, U{} + (0x3f003f80u + static_cast<std::uint32_t>(i)));
  };
  return peak_loop<F>(rounds, product) * (2 * 2 * kLanes);
}
