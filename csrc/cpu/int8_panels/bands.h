// The band layouts over vectors of any width; each instruction set's unit includes this file within
// its anonymous namespace, after cpu/simd.h and a definition of
//
//   I dot4(I acc, U x, std::int32_t w)   acc + the four products of each lane's bytes, x unsigned
//                                        and w signed
//   constexpr int kRegisterLanes         slots that the rows of a band hold in registers at a time
//
// Accumulators stay in registers for a whole band: kBand rows times kGroups lane groups.

#include "cpu/peak_loop.h"

constexpr int kPanelSlots = panels::kSlots;

SIMD_INLINE std::int32_t word_at(const std::int8_t* values) {
  std::int32_t word;
  __builtin_memcpy(&word, values, sizeof(word));
  return word;
}

// Units [first, end) of one band, for kGroups lane groups from `slot` on. Several units at a time
// (kChains) have accumulators of their own, where one band has too few to hide the latency.
template <int kBand, int kGroups, int kChains, bool kDenseIndex>
void grouped_band(const std::int8_t* values, const std::uint16_t* index, std::int64_t units,
                  const std::uint8_t* x, std::int32_t* acc) {
  I sums[kChains][kBand][kGroups];
  UNROLL
  for (int c = 0; c < kChains; ++c) {
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      UNROLL
      for (int g = 0; g < kGroups; ++g) sums[c][r][g] = I{};
    }
  }
  std::int64_t u = 0;
  for (; u + kChains <= units; u += kChains) {
    UNROLL
    for (int c = 0; c < kChains; ++c) {
      const std::int64_t group = kDenseIndex ? u + c : index[u + c];
      const std::uint8_t* from = x + group * (4 * kPanelSlots);
      U inputs[kGroups];
      UNROLL
      for (int g = 0; g < kGroups; ++g) inputs[g] = load<U>(from + 4 * kLanes * g);
      UNROLL
      for (int r = 0; r < kBand; ++r) {
        const std::int32_t w = word_at(values + ((u + c) * kBand + r) * 4);
        UNROLL
        for (int g = 0; g < kGroups; ++g) sums[c][r][g] = dot4(sums[c][r][g], inputs[g], w);
      }
    }
  }
  for (; u < units; ++u) {
    const std::uint8_t* from = x + (kDenseIndex ? u : index[u]) * (4 * kPanelSlots);
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      const std::int32_t w = word_at(values + (u * kBand + r) * 4);
      UNROLL
      for (int g = 0; g < kGroups; ++g) {
        sums[0][r][g] = dot4(sums[0][r][g], load<U>(from + 4 * kLanes * g), w);
      }
    }
  }
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

template <int kBand, int kGroups, int kChains, bool kDenseIndex>
void grouped_rows(const WeightView& w, const Call& call, const std::uint8_t* x, int slot,
                  std::int32_t* acc) {
  for (std::int64_t r = 0; r < call.rows; r += kBand) {
    const std::int64_t band = (call.row + r) / kBand;
    const std::int64_t first = w.starts[band];
    grouped_band<kBand, kGroups, kChains, kDenseIndex>(
        w.values + first * kBand * 4, kDenseIndex ? nullptr : w.index + first,
        w.starts[band + 1] - first, x + 4 * slot, acc + r * kPanelSlots + slot);
  }
}

template <int kBand, int kChains, bool kDenseIndex>
void grouped(const WeightView& w, const Call& call) {
  for (int p = 0; p < call.panels; ++p) {
    const std::uint8_t* x = call.x + p * call.panel_stride;
    std::int32_t* acc = call.acc + p * call.rows * kPanelSlots;
    const int slots = p + 1 == call.panels ? call.last_vectors * 16 : kPanelSlots;
    int slot = 0;
    for (; slot + 4 * kLanes <= slots && 4 * kLanes <= kRegisterLanes; slot += 4 * kLanes) {
      grouped_rows<kBand, 4, kChains, kDenseIndex>(w, call, x, slot, acc);
    }
    for (; slot + 2 * kLanes <= slots; slot += 2 * kLanes) {
      grouped_rows<kBand, 2, kChains, kDenseIndex>(w, call, x, slot, acc);
    }
    for (; slot < slots; slot += kLanes) {
      grouped_rows<kBand, 1, kChains, kDenseIndex>(w, call, x, slot, acc);
    }
  }
}

// Four plain rows -> lane groups of four inputs, for the slots that their bytes are of: part h of a
// row gives lane group h of each vector of sixteen slots.
#if defined(__AVX2__)
constexpr int kRowBytes = sizeof(F);
constexpr int kParts = kPanelSlots / kRowBytes;

SIMD_INLINE void interleave(const std::uint8_t* x, const std::uint16_t* index, int part,
                            U (&out)[4]) {
  const std::uint8_t* from = x + part * kRowBytes;
#if defined(__AVX512BW__)
  const auto row = [&](int i) { return _mm512_loadu_si512(from + index[i] * kPanelSlots); };
  const __m512i a = row(0), b = row(1), c = row(2), d = row(3);
  const __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
  const __m512i cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
  out[0] = (U)_mm512_unpacklo_epi16(ab_low, cd_low);
  out[1] = (U)_mm512_unpackhi_epi16(ab_low, cd_low);
  out[2] = (U)_mm512_unpacklo_epi16(ab_high, cd_high);
  out[3] = (U)_mm512_unpackhi_epi16(ab_high, cd_high);
#else
  const auto row = [&](int i) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + index[i] * kPanelSlots));
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

SIMD_INLINE void interleave(const std::uint8_t* x, const std::uint16_t* index, int part,
                            U (&out)[4]) {
  for (int vector = 0; vector < 4; ++vector) {
    U word = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      const int at = panels::byte_of_slot(16 * vector + part * kLanes + lane);
      for (int i = 0; i < 4; ++i) {
        word[lane] |= static_cast<std::uint32_t>(x[index[i] * kPanelSlots + at]) << (8 * i);
      }
    }
    out[vector] = word;
  }
}
#endif

template <int kBand, int kVectors, int kChains>
void gathered_band(const std::int8_t* values, const std::uint16_t* index, std::int64_t units,
                   const std::uint8_t* x, int part, std::int32_t* acc) {
  I sums[kChains][kBand][kVectors];
  UNROLL
  for (int c = 0; c < kChains; ++c) {
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      UNROLL
      for (int v = 0; v < kVectors; ++v) sums[c][r][v] = I{};
    }
  }
  const auto add = [&](std::int64_t u, int chain) __attribute__((always_inline)) {
    U inputs[4];
    interleave(x, index + u * 4, part, inputs);
    UNROLL
    for (int r = 0; r < kBand; ++r) {
      const std::int32_t w = word_at(values + (u * kBand + r) * 4);
      UNROLL
      for (int v = 0; v < kVectors; ++v) sums[chain][r][v] = dot4(sums[chain][r][v], inputs[v], w);
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
    for (int v = 0; v < kVectors; ++v) {
      I sum = sums[0][r][v];
      UNROLL
      for (int c = 1; c < kChains; ++c) sum += sums[c][r][v];
      store(acc + r * kPanelSlots + 16 * v + part * kLanes, sum);
    }
  }
}

template <int kBand, int kVectors, int kChains>
void gathered_rows(const WeightView& w, const Call& call, const std::uint8_t* x,
                   std::int32_t* acc) {
  for (std::int64_t r = 0; r < call.rows; r += kBand) {
    const std::int64_t band = (call.row + r) / kBand;
    const std::int64_t first = w.starts[band];
    for (int part = 0; part < kParts; ++part) {
      gathered_band<kBand, kVectors, kChains>(w.values + first * kBand * 4, w.index + first * 4,
                                              w.starts[band + 1] - first, x, part,
                                              acc + r * kPanelSlots);
    }
  }
}

template <int kBand, int kChains>
void gathered(const WeightView& w, const Call& call) {
  for (int p = 0; p < call.panels; ++p) {
    const std::uint8_t* x = call.x + p * call.panel_stride;
    std::int32_t* acc = call.acc + p * call.rows * kPanelSlots;
    switch (p + 1 == call.panels ? call.last_vectors : 4) {
      case 1:
        gathered_rows<kBand, 1, kChains>(w, call, x, acc);
        break;
      case 2:
        gathered_rows<kBand, 2, kChains>(w, call, x, acc);
        break;
      case 3:
        gathered_rows<kBand, 3, kChains>(w, call, x, acc);
        break;
      default:
        gathered_rows<kBand, 4, kChains>(w, call, x, acc);
        break;
    }
  }
}

std::int64_t peak(std::int64_t rounds) {
  const auto product = [](I sum, U x, int i) { return dot4(sum, x, 0x05fb7d81 + 0x010203 * i); };
  return peak_loop<I>(rounds, product) * (2 * 4 * kLanes);
}

constexpr Kernels kBandKernels = {{grouped<4, 1, true>, grouped<4, 1, false>, gathered<4, 1>,
                                   grouped<1, 2, false>, gathered<1, 2>, nullptr, nullptr},
                                  peak};
