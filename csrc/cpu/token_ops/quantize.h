// Floats of a panel to bytes, and sums of bytes. To be included within the unit's anonymous
// namespace, by ops.h.

// How one lane group is quantized: q = round_even(clamp(x * factor)) + offset. The static scheme
// and that of the full range divide by their scale instead, as the reference does.
struct Rule {
  F factor;  // or 1 / scale
  F scale;
  F least_value;
  F most_value;
  I offset;
};

template <bool kDivide, bool kClamp = true>
SIMD_INLINE U quantized(const Rule& rule, F x) {
  if (kDivide) {
    const Grid grid = {rule.scale, rule.factor, rule.least_value, rule.most_value};
    return (U)(to_int(nearest_level(grid, x)) + rule.offset);
  }
  F v = x * rule.factor;
  // The bounds are integers, so clamping before rounding is the same as after it. A NaN makes its
  // whole token's range NaN, and the comparison with the lower bound, then 0, takes care of it.
  if (kClamp) v = least(most(v, rule.least_value), rule.most_value);
  return (U)(to_nearest(v) + rule.offset);
}

// Fills scale and zero points of one lane group; see kernels/linear/reference.py.
SIMD_INLINE Rule make_rule(const Quantize& q, int slot, F low, F high) {
  Rule rule = {};
  F scale, zero;
  if (q.quantization.scheme == Scheme::kStatic) {
    scale = splat(q.quantization.scale);
    rule.factor = splat(1.0f / q.quantization.scale);
    zero = splat(static_cast<float>(q.quantization.zero_point));
    rule.least_value = -zero;
    rule.most_value = 255.0f - zero;
  } else if (q.quantization.scheme == Scheme::kSymmetricFull) {
    const F amax = most(high, -low);  // both are NaN or neither
    const F tiny = splat(0x1p-126f);
    const F wanted = amax / 127.5f;
    const I finite = amax - amax == 0.0f;
    scale = wanted < tiny ? tiny : wanted;  // NaN stays
    scale = amax == 0.0f ? splat(1.0f) : scale;
    rule.factor = 1.0f / scale;
    zero = splat(128.0f);
    rule.least_value = (F)((I)splat(-128.0f) & finite);  // a token that is not finite: zeros
    rule.most_value = (F)((I)splat(127.0f) & finite);
  } else if (q.quantization.scheme == Scheme::kSymmetric) {
    const F amax = most(high, -low);  // both are NaN or neither
    const F floor = splat(127.0f * 0x1p-126f);
    const F clamped = amax < floor ? floor : amax;  // NaN stays
    const I finite = amax - amax == 0.0f;
    rule.factor = (F)((I)(127.0f / clamped) & finite);
    scale = amax == 0.0f ? splat(1.0f) : clamped / 127.0f;
    zero = splat(128.0f);
    // A token that is not finite: zeros.
    rule.least_value = (F)((I)splat(-127.0f) & finite);
    rule.most_value = (F)((I)splat(127.0f) & finite);
  } else {
    const F tiny = splat(0x1p-126f);
    low = low < 0.0f ? low : (low == low ? F{} : low);
    high = high > 0.0f ? high : (high == high ? F{} : high);
    const F wanted = high / 255.0f - low / 255.0f;
    scale = wanted < tiny ? tiny : wanted;
    scale = low == high ? splat(1.0f) : scale;
    const I finite = wanted - wanted == 0.0f;
    const F inverse = 1.0f / scale;
    const F rounded = round_even(least(-low * inverse, splat(255.0f)));
    zero = (F)((I)rounded & finite);
    const F nan = splat(__builtin_nanf(""));
    scale = finite ? scale : nan;
    rule.factor = (F)((I)inverse & finite);
    rule.least_value = -zero;
    rule.most_value = (F)((I)(255.0f - zero) & finite);
  }
  rule.scale = scale;
  store(q.scale + slot, scale);
  rule.offset = to_int(zero);
  store(q.zero_points + slot, rule.offset);
  return rule;
}

SIMD_INLINE Rule rule_for(const Quantize& q, int slot) {
  if (q.quantization.scheme == Scheme::kStatic) return make_rule(q, slot, F{}, F{});
  return make_rule(q, slot, load<F>(q.low + slot), load<F>(q.high + slot));
}

// Four features of a slot make the four bytes of its lane. Rows are read whole.
template <bool kDivide>
void quantize_grouped(const Quantize& quantize) {
  constexpr int kMostGroups = kPanelSlots / kLanes;
  const Quantize q = quantize;  // as in finish_slots
  const int groups = q.vectors * panels::kVector / kLanes;
  Rule rules[kMostGroups];
  for (int g = 0; g < groups; ++g) rules[g] = rule_for(q, g * kLanes);
  const std::int64_t padded = panels::padded_features(q.rows);
  std::int64_t i = 0;
  for (; i + 4 <= q.rows; i += 4) {
    const float* x = q.x + i * kPanelSlots;
    for (int g = 0; g < groups; ++g, x += kLanes) {
      U word = quantized<kDivide>(rules[g], load<F>(x));
      word |= quantized<kDivide>(rules[g], load<F>(x + kPanelSlots)) << 8;
      word |= quantized<kDivide>(rules[g], load<F>(x + 2 * kPanelSlots)) << 16;
      word |= quantized<kDivide>(rules[g], load<F>(x + 3 * kPanelSlots)) << 24;
      store(q.q + i * kPanelSlots + 4 * kLanes * g, word);
    }
  }
  for (; i < padded; i += 4) {
    for (int g = 0; g < groups; ++g) {
      U word = {};
      for (std::int64_t j = i; j < i + 4 && j < q.rows; ++j) {
        const F v = load<F>(q.x + j * kPanelSlots + g * kLanes);
        word |= quantized<kDivide>(rules[g], v) << (8 * (j - i));
      }
      store(q.q + i * kPanelSlots + 4 * kLanes * g, word);
    }
  }
}

#if defined(__AVX512BW__)
// Packs within 128-bit lanes leave the order of plain rows, of vectors not in use zeros. They
// saturate, which is all the clamping that the asymmetric scheme needs: its bounds are 0 and 255,
// and what is not finite becomes the least integer.
template <bool kDivide, bool kClamp, int kUsed>
void quantize_plain_vectors(const Quantize& quantize) {
  const Quantize q = quantize;
  Rule rules[kUsed];
  UNROLL for (int v = 0; v < kUsed; ++v) rules[v] = rule_for(q, 16 * v);
  const std::int64_t padded = panels::padded_features(q.rows);
  for (std::int64_t i = 0; i < q.rows; ++i) {
    __m512i whole[panels::kVectors] = {};
    UNROLL for (int v = 0; v < kUsed; ++v) {
      whole[v] =
          (__m512i)quantized<kDivide, kClamp>(rules[v], load<F>(q.x + i * kPanelSlots + 16 * v));
    }
    const __m512i low = _mm512_packs_epi32(whole[0], whole[1]);
    const __m512i high = _mm512_packs_epi32(whole[2], whole[3]);
    _mm512_storeu_si512(q.q + i * kPanelSlots, _mm512_packus_epi16(low, high));
  }
  for (std::int64_t i = q.rows; i < padded; ++i) store(q.q + i * kPanelSlots, F{});
}

template <bool kDivide, bool kClamp>
void quantize_plain_panel(const Quantize& q) {
  switch (q.vectors) {
    case 1:
      return quantize_plain_vectors<kDivide, kClamp, 1>(q);
    case 2:
      return quantize_plain_vectors<kDivide, kClamp, 2>(q);
    case 3:
      return quantize_plain_vectors<kDivide, kClamp, 3>(q);
    default:
      return quantize_plain_vectors<kDivide, kClamp, 4>(q);
  }
}
#else
// Where the four bytes of slots 4 g .. 4 g + 3 begin in a plain row.
SIMD_INLINE int plain_word(int slot) {
  return 16 * (slot % 16 / 4) + 4 * (slot / 16);
}

template <bool kDivide>
void quantize_plain(const Quantize& quantize, int slot, const Rule& given) {
  const Quantize q = quantize;
  const Rule rule = given;
  const std::int64_t padded = panels::padded_features(q.rows);
  for (std::int64_t i = 0; i < padded; ++i) {
    Bytes bytes = {};
    if (i < q.rows) {
      const U whole = quantized<kDivide>(rule, load<F>(q.x + i * kPanelSlots + slot));
      bytes = __builtin_convertvector(whole, Bytes);
    }
    std::uint8_t words[kLanes];
    store(words, bytes);
    for (int lane = 0; lane < kLanes; lane += 4) {
      __builtin_memcpy(q.q + i * kPanelSlots + plain_word(slot + lane), words + lane, 4);
    }
  }
}
#endif

template <bool kDivide>
void quantize_as(const Quantize& q) {
  if (!q.plain) return quantize_grouped<kDivide>(q);
#if defined(__AVX512BW__)
  const bool saturates = q.quantization.scheme == Scheme::kAsymmetric;
  if (saturates) return quantize_plain_panel<false, false>(q);
  quantize_plain_panel<kDivide, true>(q);
#else
  for (int slot = 0; slot < q.vectors * panels::kVector; slot += kLanes) {
    quantize_plain<kDivide>(q, slot, rule_for(q, slot));
  }
#endif
}

void quantize(const Quantize& q) {
  const bool divide =
      q.quantization.scheme == Scheme::kStatic || q.quantization.scheme == Scheme::kSymmetricFull;
  return divide ? quantize_as<true>(q) : quantize_as<false>(q);
}

// Bytes beyond the features are 0, and those of slots not in use anything.
void byte_sums(const ByteSums& byte_sums) {
  constexpr int kGroups = kPanelSlots / kLanes;
  const ByteSums b = byte_sums;
  U sums[kGroups] = {};
  if (!b.plain) {
    for (std::int64_t i = 0; i < b.k; i += 4) {
      for (int g = 0; g < kGroups; ++g) {
        const U word = load<U>(b.x + i * kPanelSlots + 4 * kLanes * g);
        const U pairs = (word & 0x00ff00ffu) + (word >> 8 & 0x00ff00ffu);
        sums[g] += (pairs & 0xffffu) + (pairs >> 16);
      }
    }
    for (int g = 0; g < kGroups; ++g) store(b.sums + g * kLanes, sums[g]);
    return;
  }
  for (std::int64_t i = 0; i < b.k; ++i) {
    for (int g = 0; g < kGroups; ++g) {
      sums[g] += __builtin_convertvector(load<Bytes>(b.x + i * kPanelSlots + g * kLanes), U);
    }
  }
  for (int slot = 0; slot < kPanelSlots; ++slot) {
    const int at = panels::byte_of_slot(slot);
    b.sums[slot] = (std::int32_t)sums[at / kLanes][at % kLanes];
  }
}
