// What INT8 attention multiplies: quantizers, words of four bytes, blocks of keys and of queries.
// Included by int8.h into its anonymous namespace.

// A quantizer for loops.
struct Levels {
  Grid grid;
  I zero;  // as stored
};

SIMD_INLINE Levels levels_of(const Quantizer& q, int offset) {
  return {grid_of(q.scale, static_cast<float>(q.low - q.zero_point),
                  static_cast<float>(q.high - q.zero_point)),
          I{} + (q.zero_point + offset)};
}

constexpr int unsigned_offset(const Quantizer& q) {
  return q.low < 0 ? 128 : 0;
}

SIMD_INLINE Levels unsigned_levels(const Quantizer& q) {
  return levels_of(q, unsigned_offset(q));
}

SIMD_INLINE Levels signed_levels(const Quantizer& q) {
  return levels_of(q, q.high > 127 ? -128 : 0);
}

SIMD_INLINE I quantized(const Levels& to, F x) {
  return to_int(nearest_level(to.grid, x)) + to.zero;
}

// The nearest level's value; -0 is none.
SIMD_INLINE F requantized(const Grid& to, F x) {
  return (nearest_level(to, x) + 0.0f) * to.scale;
}

SIMD_INLINE U word_of(const I (&bytes)[4]) {
  const U low = ((U)bytes[0] & 0xffu) | ((U)bytes[1] & 0xffu) << 8;
  return low | ((U)bytes[2] & 0xffu) << 16 | (U)bytes[3] << 24;
}

// Words of four features for each of four tokens -> of four tokens for each of four features.
SIMD_INLINE U by_feature(U words) {
  typedef std::uint8_t All __attribute__((vector_size(4 * kLanes)));
  const All from = (All)words;
  All order;
  for (int i = 0; i < 4 * kLanes; ++i) {
    order[i] = static_cast<std::uint8_t>(i / 16 * 16 + i % 4 * 4 + i % 16 / 4);
  }
#if defined(__clang__)  // lacks shuffles by a vector and finds its own in constant lanes
  All to;
  for (int i = 0; i < 4 * kLanes; ++i) to[i] = from[order[i]];
  return (U)to;
#else
  return (U)__builtin_shuffle(from, order);
#endif
}

// Keys [begin, end) of a block are the sequence's; those before fill its first vector.
struct KeyBlock {
  std::int64_t token;  // of key 0, at the beginning of a vector
  std::int64_t begin;
  std::int64_t end;

  std::int64_t loaded() const { return round_up(end, panels::kVector); }
  std::int64_t rows() const { return round_up(end, int8_panels::kRowBlock); }
  std::int64_t groups() const { return loaded() / 4; }
  bool owns(std::int64_t key) const { return key >= begin && key < end; }

  static std::int64_t round_up(std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; }
};

// Queries of some vectors of one panel, with what their softmax has come to.
struct Queries {
  std::int64_t panel;
  int slot;  // a multiple of kVector; everything below is counted from it
  int vectors;
  Lanes lanes;  // those that are the call's
  alignas(64) float top[kPanelSlots];
  alignas(64) float total[kPanelSlots];
  alignas(64) std::int32_t terms[kPanelSlots];        // what zero points take from every score
  alignas(64) std::int32_t weight_sums[kPanelSlots];  // of stored probabilities
};
