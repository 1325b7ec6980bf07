// The token operations over vectors of any width; each instruction set's unit includes this file
// within its anonymous namespace, after cpu/simd.h.

constexpr int kPanelSlots = panels::kSlots;

// x * Phi(x): GELU in its erf form. Phi(-t) ~ P(t)^16 for 0 <= t <= 6, or P(t)^8 where the result
// is quantized; docs/kernels/token_ops.md describes the fits and their errors (3e-7 and 1.7e-6).
template <bool kCoarse>
SIMD_INLINE F gelu(F x) {
  const F size = (F)((I)x & 0x7fffffff);
  const F t = least(size, splat(6.0f));  // NaN: 6
  F p;
  if (kCoarse) {
    p = splat(-0x1.906f88p-13f);
    p = fma(p, t, splat(0x1.fc766ap-10f));
    p = fma(p, t, splat(-0x1.227d70p-10f));
    p = fma(p, t, splat(-0x1.03dd24p-5f));
    p = fma(p, t, splat(-0x1.76bf3cp-4f));
    p = fma(p, t, splat(0x1.d5817ap-1f));
  } else {
    p = splat(-0x1.003a3ap-25f);
    p = fma(p, t, splat(0x1.e45960p-21f));
    p = fma(p, t, splat(-0x1.2f1c3cp-17f));
    p = fma(p, t, splat(-0x1.f74714p-19f));
    p = fma(p, t, splat(0x1.3661c2p-11f));
    p = fma(p, t, splat(-0x1.4c651cp-10f));
    p = fma(p, t, splat(-0x1.247a16p-6f));
    p = fma(p, t, splat(-0x1.87352ap-5f));
    p = fma(p, t, splat(0x1.ea4afcp-1f));
    p = p * p;
  }
  p = p * p;
  p = p * p;
  p = p * p;
  // x Phi(x) = max(x, 0) - |x| Phi(-|x|); beyond 6 the second term stays at 6e-9. NaN, the second
  // operand of the maximum, stays.
  return fma(-t, p, most(F{}, x));
}

// tanh(x) = sign(x) * (1 - 2 / (e^2|x| + 1)); below 0.25 an odd Taylor polynomial, where that
// difference would lose digits.
SIMD_INLINE F hyperbolic_tangent(F x) {
  const F size = (F)((I)x & 0x7fffffff);
  const F t = least(size, splat(10.0f));
  const F far = 1.0f - 2.0f / (exponential(t + t) + 1.0f);
  const F square = t * t;
  F near = splat(62.0f / 2835.0f);
  near = fma(near, square, splat(-17.0f / 315.0f));
  near = fma(near, square, splat(2.0f / 15.0f));
  near = fma(near, square, splat(-1.0f / 3.0f));
  near = fma(near * square, t, t);
  const F y = t < 0.25f ? near : far;
  const F signed_y = (F)((I)y | ((I)x & ~0x7fffffff));
  return x == x ? signed_y : x;
}

SIMD_INLINE F sigmoid(F x) {
  // The exponential's argument stays in range; beyond, the quotient is 0 or 1 to float precision.
  const F t = least(most(-x, splat(-80.0f)), splat(80.0f));
  return 1.0f / (1.0f + exponential(t));
}

template <Activation kActivation, bool kCoarse>
SIMD_INLINE F activate(F v) {
  if (kActivation == Activation::kRelu) return v < 0.0f ? F{} : v;  // keeps NaN
  if (kActivation == Activation::kGelu) return gelu<kCoarse>(v);
  if (kActivation == Activation::kTanh) return hyperbolic_tangent(v);
  if (kActivation == Activation::kSilu) return v * sigmoid(v);
  if (kActivation == Activation::kGeluTanh) {
    // (1 + tanh(x)) / 2 is the sigmoid of 2 x; x = sqrt(2 / pi) (v + 0.044715 v^3).
    return v * sigmoid(v * fma(v * v, splat(0.0713548162726f), splat(1.59576912161f)));
  }
  return v;
}

// The level nearest to v; adding 0 leaves no -0, which the levels, integers, do not have.
SIMD_INLINE F requantized(const Output& output, F v) {
  const Grid grid = {splat(output.scale), splat(output.inverse), splat(output.low),
                     splat(output.high)};
  return (nearest_level(grid, v) + 0.0f) * grid.scale;
}

// One rounding where nobody sees it; the reference's two where the next rounding, to few levels,
// would make a whole level of the difference.
SIMD_INLINE F dequantized(F v, float scale, float bias, const Output* output) {
  if (output == nullptr) return fma(v, splat(scale), splat(bias));
  return requantized(*output, v * splat(scale) + splat(bias));
}

// Some lane groups of slots, all rows: what does not change from row to row stays in registers.
//
// kCoarse: see Finish. Only a whole token can then be NaN, by its scale, and infinities are seen in
// the range.
// kForeign: rows may have levels or zero points; loops of layers without are as if there were none.
template <bool kInteger, Activation kActivation, bool kCoarse, bool kForeign, int kGroups>
void finish_slots(const Finish& finish, int slot) {
  // A copy of our own: stores through its pointers cannot change it, so its members stay in
  // registers.
  const Finish f = finish;
  const auto* sums = static_cast<const std::uint32_t*>(f.acc);
  const auto* products = static_cast<const float*>(f.acc);
  F x_scale[kGroups], low[kGroups], high[kGroups];
  U zero_points[kGroups];
  F float_points[kGroups];
  F poison[kGroups] = {};  // NaN once a value was not finite
  F even[kGroups] = {};    // an even row, waiting for its neighbour
  for (int g = 0; g < kGroups; ++g) {
    const int at = slot + g * kLanes;
    x_scale[g] = kInteger ? load<F>(f.x_scale + at) : F{};
    zero_points[g] = kInteger ? load<U>(f.zero_points + at) : U{};
    float_points[g] = -to_float((I)zero_points[g]);
    low[g] = f.low != nullptr ? load<F>(f.low + at) : F{};
    high[g] = f.low != nullptr ? load<F>(f.high + at) : F{};
    if (kCoarse) poison[g] = x_scale[g] * 0.0f;
  }
  for (std::int64_t r = 0; r < f.rows; ++r) {
    const std::int64_t row = r * kPanelSlots + slot;
    const float bias = f.bias != nullptr ? f.bias[r] : 0.0f;
    const bool leveled = kForeign && f.outputs != nullptr && f.outputs[r].scale != 0.0f;
    const Output* output = leveled ? f.outputs + r : nullptr;
    F v[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      const std::int64_t at = row + g * kLanes;
      if (kInteger && f.float_sums != nullptr) {
        v[g] = fma(float_points[g], splat(f.float_sums[r]), to_float(load<I>(sums + at)));
        v[g] = dequantized(v[g] * x_scale[g], f.w_scale[r], bias, output);
      } else if (kInteger) {
        // Unsigned: products and differences beyond int32 cancel modulo 2^32.
        U sum = load<U>(sums + at) - zero_points[g] * static_cast<std::uint32_t>(f.row_sums[r]);
        if (kForeign && f.w_zero_points != nullptr) {
          sum -= load<U>(f.x_sums + slot + g * kLanes) *
                 static_cast<std::uint32_t>(f.w_zero_points[r]);
        }
        v[g] = dequantized(to_float((I)sum) * x_scale[g], f.w_scale[r], bias, output);
      } else {
        v[g] = load<F>(products + at) + bias;
      }
    }
    for (int g = 0; g < kGroups; ++g) v[g] = activate<kActivation, kCoarse>(v[g]);
    if (f.residual != nullptr) {
      for (int g = 0; g < kGroups; ++g) v[g] = v[g] + load<F>(f.residual + row + g * kLanes);
    }
    if (f.floats != nullptr) {
      for (int g = 0; g < kGroups; ++g) store(f.floats + row + g * kLanes, v[g]);
    }
    if (f.low != nullptr) {
      for (int g = 0; g < kGroups; ++g) {
        low[g] = least(v[g], low[g]);
        high[g] = most(v[g], high[g]);
        if (!kCoarse) poison[g] = fma(v[g], F{}, poison[g]);
      }
    }
    for (int g = 0; f.pairs != nullptr && g < kGroups; ++g) {
      if (r % 2 == 0) {
        even[g] = v[g];
      } else {
        store(f.pairs + (r - 1) * kPanelSlots + 2 * (slot + g * kLanes), to_pair(even[g], v[g]));
      }
    }
    for (int g = 0; f.halves != nullptr && g < kGroups; ++g) {
      store(f.halves + row + g * kLanes, to_halves(v[g]));
    }
  }
  for (int g = 0; f.low != nullptr && g < kGroups; ++g) {
    if (kCoarse) poison[g] = poison[g] + (low[g] - low[g]) + (high[g] - high[g]);
    store(f.low + slot + g * kLanes, low[g] + poison[g]);
    store(f.high + slot + g * kLanes, high[g] + poison[g]);
  }
}

template <bool kInteger, Activation kActivation, bool kCoarse, bool kForeign>
void finish_panel_as(const Finish& f) {
  const int end = f.vectors * panels::kVector;
  int slot = 0;
  for (; slot + 2 * kLanes <= end; slot += 2 * kLanes) {
    finish_slots<kInteger, kActivation, kCoarse, kForeign, 2>(f, slot);
  }
  for (; slot < end; slot += kLanes)
    finish_slots<kInteger, kActivation, kCoarse, kForeign, 1>(f, slot);
}

template <bool kInteger, Activation kActivation>
void finish_panel(const Finish& f) {
  const bool coarse = kInteger && f.coarse && f.residual == nullptr;
  const bool foreign = kInteger && (f.outputs != nullptr || f.w_zero_points != nullptr);
  if (coarse && foreign) return finish_panel_as<kInteger, kActivation, kInteger, kInteger>(f);
  if (coarse) return finish_panel_as<kInteger, kActivation, kInteger, false>(f);
  if (foreign) return finish_panel_as<kInteger, kActivation, false, kInteger>(f);
  finish_panel_as<kInteger, kActivation, false, false>(f);
}

template <bool kInteger>
void finish_as(const Finish& f) {
  switch (f.activation) {
    case Activation::kNone:
      return finish_panel<kInteger, Activation::kNone>(f);
    case Activation::kRelu:
      return finish_panel<kInteger, Activation::kRelu>(f);
    case Activation::kGelu:
      return finish_panel<kInteger, Activation::kGelu>(f);
    case Activation::kTanh:
      return finish_panel<kInteger, Activation::kTanh>(f);
    case Activation::kSilu:
      return finish_panel<kInteger, Activation::kSilu>(f);
    case Activation::kGeluTanh:
      return finish_panel<kInteger, Activation::kGeluTanh>(f);
  }
}

void finish(const Finish& f) {
  return f.w_scale != nullptr ? finish_as<true>(f) : finish_as<false>(f);
}

// Some lane groups side by side, so that rows are read whole.
template <int kGroups>
void moments_of(const Moments& moments, int slot) {
  constexpr int kParts = 2;  // independent sums, for latency and accuracy
  const Moments m = moments;
  const float* x = m.x + slot;
  F sums[kParts][kGroups] = {};
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (int g = 0; g < kGroups; ++g) {
      sums[i % kParts][g] = sums[i % kParts][g] + load<F>(x + i * kPanelSlots + g * kLanes);
    }
  }
  F mean[kGroups];
  F squares[kParts][kGroups] = {};
  for (int g = 0; g < kGroups; ++g) {
    mean[g] = (sums[0][g] + sums[1][g]) / static_cast<float>(m.rows);
  }
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (int g = 0; g < kGroups; ++g) {
      const F d = load<F>(x + i * kPanelSlots + g * kLanes) - mean[g];
      squares[i % kParts][g] = fma(d, d, squares[i % kParts][g]);
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    store(m.mean + slot + g * kLanes, mean[g]);
    store(m.deviation + slot + g * kLanes, squares[0][g] + squares[1][g]);
  }
}

template <int kGroups>
void normalize_of(const Normalize& normalize, int slot) {
  const Normalize n = normalize;
  F mean[kGroups], inverse[kGroups], low[kGroups], high[kGroups], poison[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    mean[g] = load<F>(n.mean + slot + g * kLanes);
    inverse[g] = load<F>(n.inverse + slot + g * kLanes);
    low[g] = splat(__builtin_inff());
    high[g] = -low[g];
    poison[g] = F{};
  }
  for (std::int64_t i = 0; i < n.rows; ++i) {
    const F weight = splat(n.weight[i]), bias = splat(n.bias[i]);
    float* x = n.x + i * kPanelSlots + slot;
    for (int g = 0; g < kGroups; ++g) {
      const F y = fma((load<F>(x + g * kLanes) - mean[g]) * inverse[g], weight, bias);
      store(x + g * kLanes, y);
      low[g] = least(y, low[g]);
      high[g] = most(y, high[g]);
      poison[g] = fma(y, F{}, poison[g]);
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    store(n.low + slot + g * kLanes, low[g] + poison[g]);
    store(n.high + slot + g * kLanes, high[g] + poison[g]);
  }
}

template <int kGroups>
void range_of(const float* x, std::int64_t rows, int slot, float* low_out, float* high_out) {
  F low[kGroups], high[kGroups], poison[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    low[g] = splat(__builtin_inff());
    high[g] = -low[g];
    poison[g] = F{};
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    for (int g = 0; g < kGroups; ++g) {
      const F v = load<F>(x + i * kPanelSlots + slot + g * kLanes);
      low[g] = least(v, low[g]);
      high[g] = most(v, high[g]);
      poison[g] = fma(v, F{}, poison[g]);
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    store(low_out + slot + g * kLanes, low[g] + poison[g]);
    store(high_out + slot + g * kLanes, high[g] + poison[g]);
  }
}

template <int kCount>
struct Groups {
  static constexpr int count = kCount;
};

// Calls step(Groups, slot) for the lane groups of the vectors in use, four at a time and then those
// that are left.
template <typename Step>
SIMD_INLINE void over_slots(int vectors, const Step& step) {
  const int end = vectors * panels::kVector;
  int slot = 0;
  for (; slot + 4 * kLanes <= end; slot += 4 * kLanes) step(Groups<4>(), slot);
  switch ((end - slot) / kLanes) {
    case 3:
      return step(Groups<3>(), slot);
    case 2:
      return step(Groups<2>(), slot);
    case 1:
      return step(Groups<1>(), slot);
  }
}

void moments(const Moments& m) {
  over_slots(m.vectors,
             [&](auto groups, int slot) { moments_of<decltype(groups)::count>(m, slot); });
}

void normalize(const Normalize& n) {
  over_slots(n.vectors,
             [&](auto groups, int slot) { normalize_of<decltype(groups)::count>(n, slot); });
}

void range(const float* x, std::int64_t rows, int vectors, float* low, float* high) {
  over_slots(vectors, [&](auto groups, int slot) {
    range_of<decltype(groups)::count>(x, rows, slot, low, high);
  });
}

// A NaN stays.
void merge_ranges(const Merge& m) {
  for (int slot = 0; slot < kPanelSlots; slot += kLanes) {
    F low = splat(__builtin_inff()), high = -low, poison = {};
    for (std::int64_t part = 0; part < m.count; ++part) {
      const float* own = m.parts + part * 2 * kPanelSlots + slot;
      const F own_low = load<F>(own), own_high = load<F>(own + kPanelSlots);
      low = least(own_low, low);
      high = most(own_high, high);
      poison = poison + (own_low - own_low) + (own_high - own_high);
    }
    store(m.first + slot, low + poison);
    store(m.second + slot, high + poison);
  }
}

// Chan, Golub and LeVeque 1983.
void merge_moments(const Merge& m) {
  for (int slot = 0; slot < kPanelSlots; slot += kLanes) {
    F mean = load<F>(m.parts + slot);
    F deviation = load<F>(m.parts + kPanelSlots + slot);
    std::int64_t done = m.part_rows < m.rows ? m.part_rows : m.rows;
    for (std::int64_t part = 1; part < m.count; ++part) {
      const float* own = m.parts + part * 2 * kPanelSlots + slot;
      const std::int64_t left = m.rows - done;
      const std::int64_t rows = m.part_rows < left ? m.part_rows : left;
      const float share = static_cast<float>(rows) / static_cast<float>(done + rows);
      const F d = load<F>(own) - mean;
      mean = fma(d, splat(share), mean);
      deviation = deviation + load<F>(own + kPanelSlots);
      deviation = fma(d * d, splat(static_cast<float>(done) * share), deviation);
      done += rows;
    }
    store(m.first + slot, mean);
    store(m.second + slot, deviation);
  }
}

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

void to_pairs(const float* x, std::int64_t rows, int vectors, std::uint16_t* y) {
  const std::int64_t padded = panels::padded_features(rows);
  for (std::int64_t i = 0; i < padded; i += 2) {
    for (int slot = 0; slot < vectors * panels::kVector; slot += kLanes) {
      const F even = i < rows ? load<F>(x + i * kPanelSlots + slot) : F{};
      const F odd = i + 1 < rows ? load<F>(x + (i + 1) * kPanelSlots + slot) : F{};
      store(y + i * kPanelSlots + 2 * slot, to_pair(even, odd));
    }
  }
}

// One step of a transposition: exchanges a's upper lanes of each pair of kStep lanes for b's lower.
template <int kStep>
SIMD_INLINE void exchange(F& a, F& b) {
  I low, high;  // lanes from kLanes on are b's
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool upper = (lane & kStep) != 0;
    low[lane] = upper ? kLanes + lane - kStep : lane;
    high[lane] = upper ? kLanes + lane : lane + kStep;
  }
#if defined(__clang__)  // lacks shuffles by a vector and finds its own in constant lanes
  const F from[2] = {a, b};
  for (int lane = 0; lane < kLanes; ++lane) {
    a[lane] = from[low[lane] / kLanes][low[lane] % kLanes];
    b[lane] = from[high[lane] / kLanes][high[lane] % kLanes];
  }
#else
  const F before = a;
  a = __builtin_shuffle(before, b, low);
  b = __builtin_shuffle(before, b, high);
#endif
}

template <int kStep>
SIMD_INLINE void exchange_all(F (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int row = 0; row < kLanes; ++row) {
    if ((row & kStep) == 0) exchange<kStep>(rows[row], rows[row + kStep]);
  }
}

SIMD_INLINE void transpose(F (&rows)[kLanes]) {
  if (kLanes > 8) exchange_all<kLanes / 2>(rows);
  if (kLanes > 4) exchange_all<4>(rows);
  exchange_all<2>(rows);
  exchange_all<1>(rows);
}

// The tokens of one lane group, `count` of them.
SIMD_INLINE void embed_tokens(const Embed& e, int token, int count) {
  constexpr std::int64_t kAhead = 16;  // features; rows are too many for the hardware's own guesses
  float* to = e.y + e.vector * panels::kVector + token;
  const float* rows[kMostTables][kLanes];
  for (int c = 0; c < e.count; ++c) {
    for (int t = 0; t < kLanes; ++t) {
      rows[c][t] = e.tables[c] + e.ids[c][token + (t < count ? t : 0)] * e.features;
    }
  }
  std::int64_t first = 0;
  for (; first + kLanes <= e.features; first += kLanes) {
    F block[kLanes] = {};
    for (int c = 0; c < e.count; ++c) {
#pragma GCC unroll 16
      for (int t = 0; t < kLanes; ++t) {
        const float* row = rows[c][t] + first;
        __builtin_prefetch(row + kAhead);
        block[t] = block[t] + load<F>(row);
      }
    }
    if (count < kLanes) {
#pragma GCC unroll 16
      for (int t = 0; t < kLanes; ++t) block[t] = t < count ? block[t] : F{};
    }
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(to + (first + i) * kPanelSlots, block[i]);
  }
  for (; first < e.features; ++first) {
    F column = {};
    for (int t = 0; t < count; ++t) {
      for (int c = 0; c < e.count; ++c) column[t] = column[t] + rows[c][t][first];
    }
    store(to + first * kPanelSlots, column);
  }
}

void embed(const Embed& e) {
  for (int token = 0; token < panels::kVector; token += kLanes) {
    const int left = e.tokens - token;
    if (left > 0) {
      embed_tokens(e, token, left < kLanes ? left : kLanes);
    } else {
      for (std::int64_t i = 0; i < e.features; ++i) {
        store(e.y + i * kPanelSlots + e.vector * panels::kVector + token, F{});
      }
    }
  }
}

// Token by token, so that few rows are written at a time: those of a panel may lie in 64 pages.
void to_rows(const float* panel, std::int64_t features, int tokens, float* rows,
             std::int64_t stride) {
  F block[kLanes];
  for (int token = 0; token < tokens; token += kLanes) {
    const int count = tokens - token < kLanes ? tokens - token : kLanes;
    const float* from = panel + token;
    float* to = rows + token * stride;
    for (std::int64_t first = 0; first < features; first += kLanes) {
      const auto width = static_cast<int>(features - first < kLanes ? features - first : kLanes);
      if (width == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) block[i] = load<F>(from + (first + i) * kPanelSlots);
        transpose(block);
        if (count == kLanes) {
#pragma GCC unroll 16
          for (int t = 0; t < kLanes; ++t) store(to + t * stride + first, block[t]);
        } else {
          for (int t = 0; t < count; ++t) store(to + t * stride + first, block[t]);
        }
      } else {
        for (int t = 0; t < count; ++t) {
          for (int i = 0; i < width; ++i) {
            to[t * stride + first + i] = from[(first + i) * kPanelSlots + t];
          }
        }
      }
    }
  }
}

void from_rows(const float* rows, std::int64_t stride, std::int64_t features, int tokens,
               float* panel) {
  F block[kLanes];
  const int slots = (tokens + panels::kVector - 1) / panels::kVector * panels::kVector;
  for (int token = 0; token < slots; token += kLanes) {
    const int left = tokens - token;
    const int count = left < 0 ? 0 : left < kLanes ? left : kLanes;
    const float* from = rows + token * stride;
    float* to = panel + token;
    for (std::int64_t first = 0; first < features; first += kLanes) {
      const auto width = static_cast<int>(features - first < kLanes ? features - first : kLanes);
      if (width == kLanes) {
        for (int t = 0; t < kLanes; ++t) {
          block[t] = t < count ? load<F>(from + t * stride + first) : F{};
        }
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + (first + i) * kPanelSlots, block[i]);
      } else {
        for (int i = 0; i < width; ++i) {
          F column = {};
          for (int t = 0; t < count; ++t) column[t] = from[t * stride + first + i];
          store(to + (first + i) * kPanelSlots, column);
        }
      }
    }
  }
}
