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

SIMD_INLINE U word_at(const std::int8_t* values) {
  std::int32_t word;
  __builtin_memcpy(&word, values, sizeof(word));
  return spread(word);
}

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

// Units of one band, for kGroups lane groups. Of one vector, two units at a time have sums of their
// own: four sums would wait for each other.
template <int kGroups, bool kDenseIndex>
void grouped_band(const std::int8_t* values, const std::uint16_t* index, std::int64_t units,
                  const std::uint8_t* x, std::int32_t* acc) {
  constexpr int kChains = kGroups == 1 ? 2 : 1;
  I sums[kChains][kBand][kGroups];
  UNROLL
  for (int c = 0; c < kChains; ++c) {
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      UNROLL
      for (int g = 0; g < kGroups; ++g) sums[c][r][g] = I{};
    }
  }
  const auto add = [&](std::int64_t u, int chain) __attribute__((always_inline)) {
    const std::int64_t group = kDenseIndex ? u : index[u];
    const std::uint8_t* from = x + group * (kUnit * kPanelSlots);
    U inputs[kGroups];
    UNROLL
    for (int g = 0; g < kGroups; ++g) inputs[g] = load<U>(from + 4 * kLanes * g);
    if (kDenseIndex) __builtin_prefetch(values + u * kBand * kUnit + kAhead);
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      const U w = word_at(values + (u * kBand + r) * kUnit);
      UNROLL
      for (int g = 0; g < kGroups; ++g) sums[chain][r][g] = dot4(sums[chain][r][g], inputs[g], w);
    }
  };
  std::int64_t u = 0;
  for (; u + kChains <= units; u += kChains) {
    UNROLL
    for (int c = 0; c < kChains; ++c) add(u + c, c);
  }
  for (; u < units; ++u) add(u, 0);
  UNROLL
  for (int r = 0; r < kBand; ++r) {
    UNROLL
    for (int g = 0; g < kGroups; ++g) {
      I sum = sums[0][r][g];
      UNROLL
      for (int c = 1; c < kChains; ++c) sum += sums[c][r][g];
      store(acc + r * kPanelSlots + g * kLanes, sum);
    }
  }
}

template <int kGroups, bool kDenseIndex>
void grouped_rows(const WeightView& w, const Call& call, const std::uint8_t* x, int slot,
                  std::int32_t* acc) {
  for (std::int64_t r = 0; r < call.rows; r += kBand) {
    const std::int64_t band = (call.row + r) / kBand;
    const std::int64_t first = w.starts[band];
    grouped_band<kGroups, kDenseIndex>(
        w.values + first * kBand * kUnit, kDenseIndex ? nullptr : w.index + first,
        w.starts[band + 1] - first, x + 4 * slot, acc + r * kPanelSlots + slot);
  }
}

template <bool kDenseIndex>
void band4_grouped(const WeightView& w, const Call& call) {
  for (int p = 0; p < call.panels; ++p) {
    const std::uint8_t* x = call.x + p * call.panel_stride;
    std::int32_t* acc = call.acc + p * call.rows * kPanelSlots;
    over_slots(p + 1 == call.panels ? call.last_vectors : 4, [&](auto groups, int slot) {
      grouped_rows<groups.value, kDenseIndex>(w, call, x, slot, acc);
    });
  }
}

// Four plain rows, `scale` bytes times their indices away -> lane groups of four inputs, for the
// slots that their bytes are of: part h of a row gives lane group h of each vector of sixteen
// slots.
#if defined(__AVX2__)
constexpr int kRowBytes = sizeof(F);
constexpr int kParts = kPanelSlots / kRowBytes;

SIMD_INLINE void interleave(const std::uint8_t* x, std::uint64_t rows, int scale, int part,
                            U (&out)[4]) {
  const std::uint8_t* from = x + part * kRowBytes;
#if defined(__AVX512BW__)
  const auto row = [&](int i) { return _mm512_loadu_si512(from + one_of(rows, i) * scale); };
  const __m512i a = row(0), b = row(1), c = row(2), d = row(3);
  const __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
  const __m512i cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
  out[0] = (U)_mm512_unpacklo_epi16(ab_low, cd_low);
  out[1] = (U)_mm512_unpackhi_epi16(ab_low, cd_low);
  out[2] = (U)_mm512_unpacklo_epi16(ab_high, cd_high);
  out[3] = (U)_mm512_unpackhi_epi16(ab_high, cd_high);
#else
  const auto row = [&](int i) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + one_of(rows, i) * scale));
  };
  const __m256i a = row(0), b = row(1), c = row(2), d = row(3);
  const __m256i ab_low = _mm256_unpacklo_epi8(a, b), ab_high = _mm256_unpackhi_epi8(a, b);
  const __m256i cd_low = _mm256_unpacklo_epi8(c, d), cd_high = _mm256_unpackhi_epi8(c, d);
  out[0] = (U)_mm256_unpacklo_epi16(ab_low, cd_low);
  out[1] = (U)_mm256_unpackhi_epi16(ab_low, cd_low);
  out[2] = (U)_mm256_unpacklo_epi16(ab_high, cd_high);
  out[3] = (U)_mm256_unpackhi_epi16(ab_high, cd_high);
#endif
}
#else
constexpr int kParts = 4;

SIMD_INLINE void interleave(const std::uint8_t* x, std::uint64_t rows, int scale, int part,
                            U (&out)[4]) {
  for (int vector = 0; vector < 4; ++vector) {
    U word = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      const int at = panels::byte_of_slot(16 * vector + part * kLanes + lane);
      for (int i = 0; i < 4; ++i) {
        word[lane] |= static_cast<std::uint32_t>(x[one_of(rows, i) * scale + at]) << (8 * i);
      }
    }
    out[vector] = word;
  }
}
#endif

template <int kVectors>
void gathered_band(const std::int8_t* values, const std::uint16_t* index, std::int64_t units,
                   const std::uint8_t* x, int part, std::int32_t* acc) {
  I sums[kBand][kVectors];
  UNROLL
  for (int r = 0; r < kBand; ++r) {
    UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = I{};
  }
  for (std::int64_t u = 0; u < units; ++u) {
    U inputs[4];
    interleave(x, four_at(index + u * kUnit), kPanelSlots, part, inputs);
    fetch_ahead(values + u * kBand * kUnit, index + u * kUnit);
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      const U w = word_at(values + (u * kBand + r) * kUnit);
      UNROLL
      for (int v = 0; v < kVectors; ++v) sums[r][v] = dot4(sums[r][v], inputs[v], w);
    }
  }
  UNROLL
  for (int r = 0; r < kBand; ++r) {
    UNROLL
    for (int v = 0; v < kVectors; ++v) {
      store(acc + r * kPanelSlots + 16 * v + part * kLanes, sums[r][v]);
    }
  }
}

template <int kVectors>
void gathered_rows(const WeightView& w, const Call& call, const std::uint8_t* x,
                   std::int32_t* acc) {
  for (std::int64_t r = 0; r < call.rows; r += kBand) {
    const std::int64_t band = (call.row + r) / kBand;
    const std::int64_t first = w.starts[band];
    for (int part = 0; part < kParts; ++part) {
      gathered_band<kVectors>(w.values + first * kBand * kUnit, w.index + first * kUnit,
                              w.starts[band + 1] - first, x, part, acc + r * kPanelSlots);
    }
  }
}

void band4_gathered(const WeightView& w, const Call& call) {
  for (int p = 0; p < call.panels; ++p) {
    const std::uint8_t* x = call.x + p * call.panel_stride;
    std::int32_t* acc = call.acc + p * call.rows * kPanelSlots;
    switch (p + 1 == call.panels ? call.last_vectors : 4) {
      case 1:
        gathered_rows<1>(w, call, x, acc);
        break;
      case 2:
        gathered_rows<2>(w, call, x, acc);
        break;
      case 3:
        gathered_rows<3>(w, call, x, acc);
        break;
      default:
        gathered_rows<4>(w, call, x, acc);
        break;
    }
  }
}

// A group of rows and a block of inputs of the band1 layouts.
struct Part {
  const std::int8_t* values;
  const std::uint16_t* index;
  const RowUnits* order;
  std::int64_t rows;
  bool first;             // of the row's blocks
  const std::uint8_t* x;  // of the block
  std::int32_t* acc;      // of the group
};

// Rows without units are last, and only the first block need write their sums.
SIMD_INLINE bool ends_at(const Part& part, std::int64_t row) {
  return row >= part.rows || (!part.first && part.order[row].units == 0);
}

SIMD_INLINE void add_to(std::int32_t* acc, I sum, bool first) {
  store(acc, first ? sum : load<I>(acc) + sum);
}

template <int kGroups>
void grouped_fours(const Part& part, int slot) {
  const std::int8_t* values = part.values;
  const std::uint16_t* index = part.index;
  const std::uint8_t* x = part.x + 4 * slot;
  for (std::int64_t row = 0; !ends_at(part, row); row += kBand) {
    const RowUnits* order = part.order + row;
    I sums[kBand][kGroups];
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      UNROLL
      for (int g = 0; g < kGroups; ++g) sums[r][g] = I{};
    }
    for (int units = order->units; units > 0; --units) {
      const std::uint64_t offsets = four_at(index);
      fetch_ahead(values, index);
      const FourWords words(values);
      UNROLL
      for (int r = 0; r < kBand; ++r) {
        const std::uint8_t* from = x + one_of(offsets, r);
        const U w = words[r];
        UNROLL
        for (int g = 0; g < kGroups; ++g) {
          sums[r][g] = dot4(sums[r][g], load<U>(from + 4 * kLanes * g), w);
        }
      }
      values += kBand * kUnit;
      index += kBand;
    }
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      std::int32_t* acc = part.acc + order[r].row * kPanelSlots + slot;
      UNROLL
      for (int g = 0; g < kGroups; ++g) add_to(acc + g * kLanes, sums[r][g], part.first);
    }
  }
}

// kRows of four rows.
template <int kRows, int kVectors>
SIMD_INLINE void gathered_four(const std::int8_t* values, const std::uint16_t* index, int units,
                               const RowUnits* order, const Part& part, int lanes) {
  I sums[kRows][kVectors];
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = I{};
  }
  for (; units > 0; --units) {
    fetch_ahead(values, index);
    UNROLL
    for (int r = 0; r < kRows; ++r) {
      U inputs[4];
      interleave(part.x, four_at(index + r * kUnit), 1, lanes, inputs);
      const U w = word_at(values + r * kUnit);
      UNROLL
      for (int v = 0; v < kVectors; ++v) sums[r][v] = dot4(sums[r][v], inputs[v], w);
    }
    values += kBand * kUnit;
    index += kBand * kUnit;
  }
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    std::int32_t* acc = part.acc + order[r].row * kPanelSlots + lanes * kLanes;
    UNROLL
    for (int v = 0; v < kVectors; ++v) add_to(acc + 16 * v, sums[r][v], part.first);
  }
}

template <int kVectors>
void gathered_fours(const Part& part) {
  // Rows whose sums for four vectors fit the registers.
  constexpr int kRows = kRegisterLanes >= 4 * 16 ? kBand : kBand / 2;
  const std::int8_t* values = part.values;
  const std::uint16_t* index = part.index;
  for (std::int64_t row = 0; !ends_at(part, row); row += kBand) {
    const int units = part.order[row].units;
    for (int lanes = 0; lanes < kParts; ++lanes) {
      for (int r = 0; r < kBand; r += kRows) {
        gathered_four<kRows, kVectors>(values + r * kUnit, index + r * kUnit, units,
                                       part.order + row + r, part, lanes);
      }
    }
    values += units * kBand * kUnit;
    index += units * kBand * kUnit;
  }
}

void band1_grouped_part(const Part& part, int vectors) {
  over_slots(vectors, [&](auto groups, int slot) { grouped_fours<groups.value>(part, slot); });
}

void band1_gathered_part(const Part& part, int vectors) {
  switch (vectors) {
    case 1:
      return gathered_fours<1>(part);
    case 2:
      return gathered_fours<2>(part);
    case 3:
      return gathered_fours<3>(part);
    default:
      return gathered_fours<4>(part);
  }
}

// Every block of inputs passes over the rows of a group before the next one does.
template <bool kGathered>
void band1(const WeightView& w, const Call& call) {
  const std::int64_t group = row_group(w.layout, w.n, w.k), blocks = input_blocks(w.k);
  for (int p = 0; p < call.panels; ++p) {
    const int vectors = p + 1 == call.panels ? call.last_vectors : 4;
    const std::uint8_t* x = call.x + p * call.panel_stride;
    std::int32_t* acc = call.acc + p * call.rows * kPanelSlots;
    for (std::int64_t r = 0; r < call.rows; r += group) {
      const std::int64_t row = call.row + r, left = call.rows - r;
      const std::int64_t rows = left < group ? left : group;
      for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t start = w.starts[row / group * blocks + block];
        const Part part = {w.values + start * kUnit,
                           w.index + start * (kGathered ? kUnit : 1),
                           w.order + (row * blocks + block * rows),
                           rows,
                           block == 0,
                           x + block * kInputBlock * kPanelSlots,
                           acc + r * kPanelSlots};
        kGathered ? band1_gathered_part(part, vectors) : band1_grouped_part(part, vectors);
      }
    }
  }
}

std::int64_t peak(std::int64_t rounds) {
  const auto product = [](I sum, U x, int i) {
    return dot4(sum, x, spread(0x05fb7d81 + 0x010203 * i));
  };
  return peak_loop<I>(rounds, product) * (2 * 4 * kLanes);
}

constexpr Kernels kBandKernels = {{band4_grouped<true>, band4_grouped<false>, band4_gathered,
                                   band1<false>, band1<true>, nullptr, nullptr},
                                  peak};
