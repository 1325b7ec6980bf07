// Bands of four rows that share their inputs: dense, and of groups or gathered inputs. To be
// included within the unit's anonymous namespace, by bands.h.

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
      const U w = spread_at(values + (u * kBand + r) * kUnit);
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
      const U w = spread_at(values + (u * kBand + r) * kUnit);
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
