// Panels to and from rows, embeddings, and bf16 pairs. To be included within the unit's anonymous
// namespace, by ops.h.

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
