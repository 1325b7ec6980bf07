// The float layouts over vectors of any width; each instruction set's unit includes this file
// within its anonymous namespace, after cpu/simd.h and a definition of
//
//   F dot2(F acc, U x, U w)      acc + both products of each lane's bf16 pairs
//   constexpr int kWideGroups    lane groups whose sums for kTallBand rows fit the registers

#include "cpu/peak_loop.h"

constexpr int kPanelSlots = panels::kSlots;

SIMD_INLINE void add_to(float* acc, F sum, bool first) {
  store(acc, first ? sum : load<F>(acc) + sum);
}

// Chains of sums side by side: few sums leave registers for them, and need them to hide the
// latency.
constexpr int chains_of(int rows, int groups) {
  return rows * groups >= 12 ? 1 : rows * groups >= 6 ? 2 : 4;
}

// Far enough ahead for memory that is in no cache of the core: a band of a block of inputs.
constexpr std::int64_t kAhead = kInputBlock * kTallBand;

template <int kRows, int kGroups>
SIMD_INLINE void dense32_band(const float* values, const float* x, std::int64_t inputs, bool first,
                              float* acc) {
  // Each block has a sum of its own: the error of a sum grows with its length.
  constexpr int kChains = chains_of(kRows, kGroups);
  F sums[kChains][kRows][kGroups];
  UNROLL for (int c = 0; c < kChains; ++c) {
    UNROLL for (int r = 0; r < kRows; ++r) {
      UNROLL for (int g = 0; g < kGroups; ++g) sums[c][r][g] = F{};
    }
  }
  const auto add = [&](std::int64_t i, int chain) __attribute__((always_inline)) {
    F input[kGroups];
    UNROLL for (int g = 0; g < kGroups; ++g) {
      input[g] = load<F>(x + i * kPanelSlots + g * kLanes);
    }
    __builtin_prefetch(values + i * kRows + kAhead);
    UNROLL for (int r = 0; r < kRows; ++r) {
      const F w = splat(values[i * kRows + r]);
      UNROLL for (int g = 0; g < kGroups; ++g) {
        sums[chain][r][g] = fma(w, input[g], sums[chain][r][g]);
      }
    }
  };
  std::int64_t i = 0;
  for (; i + kChains <= inputs; i += kChains) {
    UNROLL for (int c = 0; c < kChains; ++c) add(i + c, c);
  }
  for (; i < inputs; ++i) add(i, 0);
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int g = 0; g < kGroups; ++g) {
      F sum = sums[0][r][g];
      UNROLL for (int c = 1; c < kChains; ++c) sum = sum + sums[c][r][g];
      add_to(acc + r * kPanelSlots + g * kLanes, sum, first);
    }
  }
}

// Consecutive rows of a weight.
struct Group {
  std::int64_t row;
  std::int64_t rows;
};

// Rows of a group for the inputs of one block and some lane groups.
template <int kGroups>
void dense32_rows(const WeightView& w, const Group& group, const float* x, std::int64_t block,
                  std::int64_t inputs, float* acc) {
  const float* values = w.floats + (group.row * w.k + block * group.rows);
  x += block * kPanelSlots;
  std::int64_t r = 0;
  for (; r + kTallBand <= group.rows; r += kTallBand) {
    dense32_band<kTallBand, kGroups>(values + r * inputs, x, inputs, block == 0,
                                     acc + r * kPanelSlots);
  }
  // Groups are multiples of 32 rows.
  values += r * inputs;
  acc += r * kPanelSlots;
  if (group.rows - r == 4) dense32_band<4, kGroups>(values, x, inputs, block == 0, acc);
  if (group.rows - r == 2) dense32_band<2, kGroups>(values, x, inputs, block == 0, acc);
}

// Rows that have as many units, side by side: one row's sums are too few to hide the latency.
template <int kRows, int kGroups>
SIMD_INLINE void sparse32_band(const float* values, const std::uint16_t* index,
                               const RowUnits* order, const char* x, bool first, float* acc) {
  // Each block has a sum of its own here too: of all inputs, it errs by four times a dense product.
  F sums[kRows][kGroups];
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int g = 0; g < kGroups; ++g) sums[r][g] = F{};
  }
  for (int units = order->units; units > 0; --units) {
    const std::uint64_t offsets = kRows == 4 ? four_at(index) : *index;
    UNROLL for (int r = 0; r < kRows; ++r) {
      const F value = kRows == kBand ? (F)FourWords(values)[r] : splat(values[r]);
      const char* input = x + one_of(offsets, r);
      UNROLL for (int g = 0; g < kGroups; ++g) {
        sums[r][g] = fma(value, load<F>(input + 4 * kLanes * g), sums[r][g]);
      }
    }
    values += kRows;
    index += kRows;
  }
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int g = 0; g < kGroups; ++g) {
      add_to(acc + order[r].row * kPanelSlots + g * kLanes, sums[r][g], first);
    }
  }
}

template <int kGroups>
void sparse32_rows(const WeightView& w, const Group& group, const float* x, std::int64_t block,
                   std::int64_t, float* acc) {
  const std::int64_t blocks = (w.k + kInputBlock - 1) / kInputBlock, b = block / kInputBlock;
  const RowUnits* order = w.order + (group.row * blocks + b * group.rows);
  const std::int32_t start =
      w.starts[group.row / row_group(Layout::kSparse32, w.n, w.k) * blocks + b];
  const float* values = w.floats + start;
  const std::uint16_t* index = w.index + start;
  const auto* inputs = reinterpret_cast<const char*>(x + block * kPanelSlots);
  std::int64_t r = 0;
  for (; r + kBand <= group.rows && order[r + kBand - 1].units > 0; r += kBand) {
    sparse32_band<kBand, kGroups>(values, index, order + r, inputs, block == 0, acc);
    values += kBand * order[r].units;
    index += kBand * order[r].units;
  }
  for (; r < group.rows && order[r].units > 0; ++r) {
    sparse32_band<1, kGroups>(values, index, order + r, inputs, block == 0, acc);
    values += order[r].units;
    index += order[r].units;
  }
  for (; block == 0 && r < group.rows; ++r) {
    for (int g = 0; g < kGroups; ++g) store(acc + order[r].row * kPanelSlots + g * kLanes, F{});
  }
}

// Pairs: twice the inputs in as many bytes.
template <int kGroups>
void dense16_rows(const WeightView& w, const Group& group, const float* x, std::int64_t block,
                  std::int64_t inputs, float* acc) {
  const std::int64_t pairs = (w.k + 1) / 2;
  for (std::int64_t r = 0; r < group.rows; r += kBand) {
    const std::uint16_t* values = w.halves + 2 * ((group.row + r) * pairs + block / 2 * kBand);
    float* to = acc + r * kPanelSlots;
    F sums[kBand][kGroups] = {};
    for (std::int64_t i = 0; i < (inputs + 1) / 2; ++i) {
      U input[kGroups];
      for (int g = 0; g < kGroups; ++g) {
        input[g] = load<U>(x + (block / 2 + i) * kPanelSlots + g * kLanes);
      }
      __builtin_prefetch(values + (pairs + i) * kBand * 2);  // the next band's
      for (int b = 0; b < kBand; ++b) {
        const U weight = spread_at(values + (i * kBand + b) * 2);
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

using Rows = void (*)(const WeightView& w, const Group& group, const float* x, std::int64_t block,
                      std::int64_t inputs, float* acc);

// One block of inputs and all lane groups of one panel, by the widest of `rows` that fits.
SIMD_INLINE void over_block(const WeightView& w, const Group& group, const float* x, int slots,
                            std::int64_t block, float* acc, Rows wide, Rows two, Rows one) {
  const std::int64_t left = w.k - block;
  const std::int64_t inputs = left < kInputBlock ? left : kInputBlock;
  int slot = 0;
  for (; slot + kWideGroups * kLanes <= slots; slot += kWideGroups * kLanes) {
    wide(w, group, x + slot, block, inputs, acc + slot);
  }
  for (; slot + 2 * kLanes <= slots; slot += 2 * kLanes) {
    two(w, group, x + slot, block, inputs, acc + slot);
  }
  for (; slot < slots; slot += kLanes) one(w, group, x + slot, block, inputs, acc + slot);
}

SIMD_INLINE void over_call(const WeightView& w, const Call& call, Rows wide, Rows two, Rows one) {
  const std::int64_t most = row_group(w.layout, w.n, w.k);
  for (int p = 0; p < call.panels; ++p) {
    const auto* x =
        reinterpret_cast<const float*>(static_cast<const char*>(call.x) + p * call.panel_stride);
    float* acc = call.acc + p * call.rows * kPanelSlots;
    const int slots = p + 1 == call.panels ? call.last_vectors * 16 : kPanelSlots;
    // No inputs at all are one empty block: the sums are zero.
    for (std::int64_t block = 0; block == 0 || block < w.k; block += kInputBlock) {
      for (std::int64_t r = 0; r < call.rows; r += most) {
        const std::int64_t left = call.rows - r;
        const Group group = {call.row + r, left < most ? left : most};
        over_block(w, group, x, slots, block, acc + r * kPanelSlots, wide, two, one);
      }
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
