// What follows the sums of a linear layer: scales, bias, activation, residual. To be included
// within the unit's anonymous namespace, by ops.h.

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
