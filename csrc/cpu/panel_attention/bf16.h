// What bf16 attention needs besides tiles: where a head lies, and the softmax. To be included
// within the unit's anonymous namespace, after cpu/simd.h.

constexpr int kPanelSlots = panels::kSlots;
constexpr std::int64_t kStep = 32;                       // keys go by this many
constexpr std::int64_t kPairRowBytes = 4 * kPanelSlots;  // pairs form
constexpr std::int64_t kHalfRowBytes = 2 * kPanelSlots;  // halves form

std::int64_t round_up(std::int64_t x, std::int64_t to) {
  return (x + to - 1) / to * to;
}

struct Head {
  const char* qkv;
  std::int64_t panel_stride;
  std::int64_t query_row;
  std::int64_t key_row;
  std::int64_t value_row;
  std::int64_t head_size;
  std::int64_t padded;  // head_size in whole steps

  const char* pairs(std::int64_t row, std::int64_t token) const {
    return qkv + token / kPanelSlots * panel_stride + row / 2 * kPairRowBytes +
           token % kPanelSlots * 4;
  }
  const char* halves(std::int64_t row, std::int64_t token) const {
    return qkv + token / kPanelSlots * panel_stride + row * kHalfRowBytes + token % kPanelSlots * 2;
  }
};

SIMD_INLINE Head head_of(const Problem& problem, const Call& call) {
  const std::int64_t all = problem.heads * problem.head_size;
  const std::int64_t row = call.head * problem.head_size;
  return {static_cast<const char*>(problem.qkv),
          problem.panel_stride,
          row,
          all + row,
          2 * all + row,
          problem.head_size,
          round_up(problem.head_size, kStep)};
}

// Weights become bf16 by dropping bits, which takes 0.7213 / 256 of them on average (mantissas
// being uniform in their logarithm). They are that much larger before, and so is their total.
constexpr float kRounding = 1.0028175f;

// kRounding * 2^x, relative error 1.2e-4: half a unit of the bf16 that it becomes is 2e-3. NaN
// stays.
//
// A line on each sixteenth, its ends from tables: while the matrix unit is in use, a core has one
// port for products and roundings, and tables and sums go to the other.
class PowersOfTwo {
 public:
  PowersOfTwo()
      : values_(_mm512_loadu_ps(kValues)),
        slopes_(_mm512_loadu_ps(kSlopes)),
        shift_(_mm512_set1_ps(786432.0f)) {}  // 1.5 * 2^19: the last four bits count sixteenths

  // Step by step for several, so that none waits for the one before.
  template <int kCount>
  SIMD_INLINE void of(__m512 (&x)[kCount]) const {
    __m512 r[kCount], value[kCount], slope[kCount];
    UNROLL for (int i = 0; i < kCount; ++i) {
      r[i] = _mm512_reduce_ps(x[i], 4 << 4 | kDown);
    }
    UNROLL for (int i = 0; i < kCount; ++i) {
      const __m512i at = _mm512_castps_si512(_mm512_add_round_ps(x[i], shift_, kDown));
      value[i] = _mm512_permutexvar_ps(at, values_);
      slope[i] = _mm512_permutexvar_ps(at, slopes_);
    }
    UNROLL for (int i = 0; i < kCount; ++i) {
      r[i] = _mm512_fmadd_ps(slope[i], r[i], value[i]);
    }
    UNROLL for (int i = 0; i < kCount; ++i) {
      x[i] = _mm512_scalef_ps(r[i], x[i]);
    }
  }

 private:
  static constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  static constexpr float kValues[16] = {
      1.0027f,   1.047093f, 1.093452f, 1.141863f, 1.192418f, 1.245211f, 1.300341f, 1.357912f,
      1.418032f, 1.480814f, 1.546375f, 1.614839f, 1.686334f, 1.760994f, 1.83896f,  1.920378f};
  static constexpr float kSlopes[16] = {0.7102931f, 0.7417405f, 0.7745801f, 0.8088737f,
                                        0.8446856f, 0.8820831f, 0.9211362f, 0.9619184f,
                                        1.004506f,  1.048979f,  1.095422f,  1.14392f,
                                        1.194566f,  1.247454f,  1.302683f,  1.360358f};

  __m512 values_;
  __m512 slopes_;
  __m512 shift_;
};

// The scores of kStep keys and sixteen queries, of which keys [begin, end) are the sequence's.
template <bool kBias>
struct Scores {
  const float* scores;
  std::int64_t begin;
  std::int64_t end;
  // kBias only.
  const float* bias;  // of the first key
  std::int64_t span;
  __mmask16 lanes;  // queries that have one
};

// Sums of the weights of even and of odd keys.
struct Totals {
  __m512 even = {};
  __m512 odd = {};

  __m512 sum() const { return _mm512_add_ps(even, odd); }
  // Whether weights have grown so large that those of the last step should be taken again.
  bool overflow(__mmask16 lanes) const {
    constexpr float kLarge = 65536.0f;
    return _mm512_mask_cmp_ps_mask(lanes, sum(), _mm512_set1_ps(kLarge), _CMP_GT_OQ) != 0;
  }
};

// The softmax of sixteen queries, in units of log 2. Weights count from `top`: the largest of a few
// scores, and later of all of a step whose weights have grown too large. Any top serves that keeps
// them within floats, so nobody looks through all scores first.
class Softmax {
 public:
  explicit Softmax(float scale) : scale_(_mm512_set1_ps(scale * kLog2E)) {}

  // Other queries, of which these are their first scores.
  template <bool kBias>
  void begin(const Scores<kBias>& s) {
    constexpr std::int64_t kFew = 8;
    const std::int64_t end = s.end - s.begin < kFew ? s.end : s.begin + kFew;
    top_ = largest(s, end, _mm512_set1_ps(-3.0e38f));
  }

  // The weights of keys [k, k + kTogether), as pairs of bf16.
  static constexpr std::int64_t kTogether = 4;
  template <bool kBias>
  SIMD_INLINE void weigh(const Scores<kBias>& s, std::int64_t k, std::uint32_t* pairs,
                         Totals& totals) const {
    __m512 x[kTogether];
    UNROLL for (int i = 0; i < kTogether; ++i) {
      x[i] = difference(s, k + i, top_);
    }
    powers_.of(x);
    if (s.begin != 0 || s.end != kStep) {
      UNROLL for (int i = 0; i < kTogether; ++i) {
        if (k + i < s.begin || k + i >= s.end) x[i] = _mm512_setzero_ps();
      }
    }
    UNROLL for (int i = 0; i < kTogether; i += 2) {
      totals.even = _mm512_add_ps(totals.even, x[i]);
      totals.odd = _mm512_add_ps(totals.odd, x[i + 1]);
      put(pairs, k + i, _mm512_castps_si512(x[i]), _mm512_castps_si512(x[i + 1]));
    }
  }

  // Counts from the largest of these scores, if it is larger. Returns the factor by which what was
  // counted before fades.
  template <bool kBias>
  __m512 raise(const Scores<kBias>& s) {
    const __m512 before = top_;
    top_ = largest(s, s.end, before);
    __m512 fade[1] = {_mm512_sub_ps(before, top_)};
    powers_.of(fade);
    return _mm512_mul_ps(fade[0], _mm512_set1_ps(1.0f / kRounding));
  }

 private:
  static constexpr float kLog2E = 1.44269504f;

  // A score less `top`.
  template <bool kBias>
  SIMD_INLINE __m512 difference(const Scores<kBias>& s, std::int64_t k, __m512 top) const {
    const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(s.scores + k * 16), scale_, top);
    if (!kBias) return x;
    const bool own = k >= s.begin && k < s.end;  // others may have no bias
    const __m512 bias = _mm512_maskz_loadu_ps(own ? s.lanes : 0, s.bias + k * s.span);
    return _mm512_fmadd_ps(bias, _mm512_set1_ps(kLog2E), x);
  }

  // Of the sequence's keys up to `end`, query by query, and `top`.
  template <bool kBias>
  __m512 largest(const Scores<kBias>& s, std::int64_t end, __m512 top) const {
    const __m512 none = _mm512_setzero_ps();
    __m512 even = top, odd = top;  // independent, for latency
    std::int64_t k = s.begin;
    for (; k + 2 <= end; k += 2) {
      even = _mm512_max_ps(difference(s, k, none), even);
      odd = _mm512_max_ps(difference(s, k + 1, none), odd);
    }
    if (k < end) even = _mm512_max_ps(difference(s, k, none), even);
    return _mm512_max_ps(even, odd);
  }

  // Cut off, not rounded: see kRounding.
  SIMD_INLINE static void put(std::uint32_t* pairs, std::int64_t k, __m512i even, __m512i odd) {
    constexpr int kSelect = 0xca;  // odd where `upper` has ones, else even
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    const __m512i pair =
        _mm512_ternarylogic_epi32(upper, odd, _mm512_srli_epi32(even, 16), kSelect);
    _mm512_storeu_si512(pairs + k / 2 * 16, pair);
  }

  PowersOfTwo powers_;
  __m512 scale_;
  __m512 top_ = {};
};
