// Floats as sums of three bf16, laid out for tiles. To be included within the unit's anonymous
// namespace, after cpu/simd.h.

// x = p[0] + p[1] + p[2], each the nearest bf16 to what is left (ties away from zero): after two of
// them no more than seven bits are. A word holds the part of `low` in its low half and of `high`.
struct Parts {
  __m512i p[kParts];
};

SIMD_INLINE __m512i pack(__m512i low, __m512i high) {
  return _mm512_mask_alignr_epi8(high, 0x3333333333333333, low, low, 2);
}

SIMD_INLINE __m512i rounded_up(__m512 x) {
  return _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
}

SIMD_INLINE __m512 without_upper(__m512 x, __m512i rounded) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(rounded, upper)));
}

SIMD_INLINE Parts split(__m512 low, __m512 high) {
  Parts parts;
  for (int i = 0; i < 2; ++i) {
    const __m512i a = rounded_up(low), b = rounded_up(high);
    parts.p[i] = pack(a, b);
    low = without_upper(low, a);
    high = without_upper(high, b);
  }
  parts.p[2] = pack(_mm512_castps_si512(low), _mm512_castps_si512(high));
  return parts;
}

SIMD_INLINE void store(std::uint16_t* operand, std::int64_t row, const Parts& parts) {
  for (int i = 0; i < kParts; ++i) {
    _mm512_store_si512(operand + i * kTileSize + row * kStep, parts.p[i]);
  }
}

// The largest magnitude; NaN counts as more than infinity.
class Magnitude {
 public:
  SIMD_INLINE void add(__m512 x) {
    most_ = _mm512_max_epu32(_mm512_slli_epi32(_mm512_castps_si512(x), 1), most_);
  }

  // Of no number: NaN.
  float value() const {
    const std::uint32_t bits = _mm512_reduce_max_epu32(most_) >> 1;
    float x;
    __builtin_memcpy(&x, &bits, sizeof(x));
    return x;
  }

 private:
  __m512i most_ = _mm512_setzero_si512();
};

// One head's queries, keys or values in the panels; and the tokens that count: all others are zero.
struct Rows {
  const char* first;  // the panel's feature 0 of the head
  std::int64_t panel_stride;
  std::int64_t head_size;
  std::int64_t begin;
  std::int64_t end;

  __mmask16 lanes(std::int64_t token) const {
    const auto below = [](std::int64_t n) {
      return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u;
    };
    return static_cast<__mmask16>(below(end - token) & ~below(begin - token));
  }
};

// Feature after feature of sixteen tokens, which begin at a multiple of sixteen.
class Reader {
 public:
  Reader(const Rows& rows, std::int64_t token)
      : from_(reinterpret_cast<const float*>(rows.first +
                                             token / panels::kSlots * rows.panel_stride) +
              token % panels::kSlots),
        head_size_(rows.head_size),
        lanes_(rows.lanes(token)) {}

  SIMD_INLINE void fetch(std::int64_t feature) const {
    _mm_prefetch(reinterpret_cast<const char*>(from_ + feature * panels::kSlots), _MM_HINT_T0);
  }

  SIMD_INLINE __m512 operator()(std::int64_t feature) const {
    const __mmask16 lanes = feature < head_size_ ? lanes_ : 0;
    return _mm512_maskz_loadu_ps(lanes, from_ + feature * panels::kSlots);
  }

 private:
  const float* from_;
  std::int64_t head_size_;
  __mmask16 lanes_;
};

constexpr std::int64_t kAhead = 8;  // features, of what is fetched before it is read

SIMD_INLINE void split_row(__m512 low, __m512 high, std::uint16_t* operand, std::int64_t row,
                           Magnitude& magnitude) {
  magnitude.add(low);
  magnitude.add(high);
  store(operand, row, split(low, high));
}

// Operands [feature / 32] of sixteen keys: row j is token j, its word i features i and i + 16, as
// the queries' rows are.
void split_keys(const Rows& rows, std::int64_t token, std::int64_t padded, std::uint16_t* operands,
                Magnitude& magnitude) {
  const Reader read(rows, token);
  for (std::int64_t d = 0; d < padded; d += kStep, operands += kOperandSize) {
    __m512i low[16], high[16];
    for (int j = 0; j < 16; ++j) {
      const __m512 a = read(d + j), b = read(d + j + 16);
      magnitude.add(a);
      magnitude.add(b);
      low[j] = _mm512_castps_si512(a);
      high[j] = _mm512_castps_si512(b);
    }
    transpose(low);
    transpose(high);
    for (int j = 0; j < 16; ++j) {
      store(operands, j, split(_mm512_castsi512_ps(low[j]), _mm512_castsi512_ps(high[j])));
    }
  }
}
