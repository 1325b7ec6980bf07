// Moments, normalization and ranges of panels, of parts and merged. To be included within the
// unit's anonymous namespace, by ops.h.

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
