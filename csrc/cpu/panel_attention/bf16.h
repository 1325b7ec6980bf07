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

// 2^x, relative error 1.2e-4: what the bf16 that it becomes leaves out is up to 8e-3. NaN stays.
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
      0.9998828f, 1.044151f, 1.09038f, 1.138655f, 1.189068f, 1.241712f, 1.296688f, 1.354097f,
      1.414048f,  1.476654f, 1.54203f, 1.610302f, 1.681596f, 1.756046f, 1.833793f, 1.914983f};
  static constexpr float kSlopes[16] = {0.7082975f, 0.7396565f, 0.7724039f, 0.8066011f,
                                        0.8423124f, 0.8796048f, 0.9185482f, 0.9592158f,
                                        1.001684f,  1.046032f,  1.092344f,  1.140706f,
                                        1.19121f,   1.243949f,  1.299023f,  1.356536f};

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
// them within floats, so nobody looks through all scores first. It is a whole number: another one
// changes weights' exponents alone, so what is cut off them does not depend on where in the steps a
// sequence begins.
class Softmax {
 public:
  explicit Softmax(float scale) : scale_(_mm512_set1_ps(scale * kLog2E)) {}

  // Other queries, of which these are their first scores.
  template <bool kBias>
  void begin(const Scores<kBias>& s) {
    constexpr std::int64_t kFew = 8;
    const std::int64_t end = s.end - s.begin < kFew ? s.end : s.begin + kFew;
    top_ = whole(largest(s, end, _mm512_set1_ps(-3.0e38f)));
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
      const __m512i even = upper_half(x[i]), odd = upper_half(x[i + 1]);
      totals.even = _mm512_add_ps(totals.even, _mm512_castsi512_ps(even));
      totals.odd = _mm512_add_ps(totals.odd, _mm512_castsi512_ps(odd));
      _mm512_storeu_si512(pairs + (k + i) / 2 * 16,
                          _mm512_or_si512(_mm512_srli_epi32(even, 16), odd));
    }
  }

  // Counts from the largest of these scores, if it is larger. Returns the factor by which what was
  // counted before fades.
  template <bool kBias>
  __m512 raise(const Scores<kBias>& s) {
    const __m512 before = top_;
    top_ = whole(largest(s, s.end, before));
    return _mm512_scalef_ps(_mm512_set1_ps(1.0f), _mm512_sub_ps(before, top_));
  }

 private:
  static constexpr float kLog2E = 1.44269504f;

  // A score less `top`. With a bias, which may be as large as a mask's, the score is rounded as
  // `top` was: the rest of an exact product, 2^9 of 10^10, would be all there is of the difference.
  template <bool kBias>
  SIMD_INLINE __m512 difference(const Scores<kBias>& s, std::int64_t k, __m512 top) const {
    const __m512 score = _mm512_loadu_ps(s.scores + k * 16);
    if (!kBias) return _mm512_fmsub_ps(score, scale_, top);
    const bool own = k >= s.begin && k < s.end;  // others may have no bias
    const __m512 bias = _mm512_maskz_loadu_ps(own ? s.lanes : 0, s.bias + k * s.span);
    const __m512 sum = _mm512_fmadd_ps(bias, _mm512_set1_ps(kLog2E), _mm512_mul_ps(score, scale_));
    return _mm512_sub_ps(sum, top);
  }

  SIMD_INLINE static __m512 whole(__m512 x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
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

  // The bf16 below. Totals are of these too, so that what is cut off of all weights alike, or of
  // the only one there is, changes nothing.
  SIMD_INLINE static __m512i upper_half(__m512 weight) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_and_si512(_mm512_castps_si512(weight), upper);
  }

  PowersOfTwo powers_;
  __m512 scale_;
  __m512 top_ = {};
};
