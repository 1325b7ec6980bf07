// The running softmax in float32, in units of log 2; its weights as operands. To be included within
// the unit's anonymous namespace, after split.h.

constexpr float kLog2E = 1.44269504f;

// 2^x, relative error 1.5e-7; 2^-infinity is 0. A polynomial for the fraction, minimax with 1 at 0.
SIMD_INLINE __m512 power_of_two(__m512 x) {
  const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
  __m512 p = _mm512_set1_ps(1.867130515e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.017029777e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.579991266e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.401644439e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931512952e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);
}

constexpr float kNoScore = -3.0e38f;  // below every score

// A bias and where it is added: to keys [from, to) of sixteen queries' scores.
struct Bias {
  const float* first;  // of key `from`; null if there is none
  std::int64_t stride;
  __mmask16 lanes;
};

// Finds the largest score of sixteen queries each.
class Looker {
 public:
  // Of `vectors` times `count` keys, a multiple of kStep; all but [from, to) get the score of
  // -infinity. Where there is a bias, scores become units of log 2.
  Looker(float* const (&scores)[kVectors], std::int64_t vectors, std::int64_t count,
         std::int64_t from, std::int64_t to, __m512 scale, const Bias (&bias)[kVectors])
      : scores_{scores[0], scores[1]},
        bias_{bias[0], bias[1]},
        scale_(scale),
        count_(count),
        from_(from),
        to_(to),
        units_(vectors * (count / kRows)) {
    for (std::int64_t v = 0; v < vectors; ++v) {
      exclude(scores[v], 0, from);
      exclude(scores[v], to, count);
    }
  }

  std::int64_t units() const { return units_; }
  bool done() const { return units_ == unit_; }
  void copy(__m512 (&to)[kVectors]) const {
    for (int v = 0; v < kVectors; ++v) to[v] = most_[v];
  }

  SIMD_INLINE void step() {
    float* rows = scores_[vector_] + key_ * 16;
    if (bias_[vector_].first != nullptr) add_bias(rows);
    __m512 most[kRows];
    for (int i = 0; i < kRows; ++i) most[i] = _mm512_load_ps(rows + i * 16);
    for (int n = kRows / 2; n > 0; n /= 2) {
      for (int i = 0; i < n; ++i) most[i] = _mm512_max_ps(most[i], most[i + n]);
    }
    most_[vector_] = _mm512_max_ps(most[0], most_[vector_]);  // NaN, the first operand, goes
    ++unit_;
    key_ += kRows;
    if (key_ == count_) {
      key_ = 0;
      ++vector_;
    }
  }

 private:
  static constexpr int kRows = 8;

  static void exclude(float* scores, std::int64_t from, std::int64_t to) {
    const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
    for (std::int64_t k = from; k < to; ++k) _mm512_store_ps(scores + k * 16, nothing);
  }

  void add_bias(float* rows) const {
    const Bias& bias = bias_[vector_];
    const __m512 unit = _mm512_set1_ps(kLog2E);
    for (std::int64_t k = key_; k < key_ + kRows; ++k, rows += 16) {
      if (k < from_ || k >= to_) continue;
      const float* from = bias.first + (k - from_) * bias.stride;
      const __m512 added = _mm512_mul_ps(_mm512_maskz_loadu_ps(bias.lanes, from), unit);
      _mm512_store_ps(rows, _mm512_fmadd_ps(_mm512_load_ps(rows), scale_, added));
    }
  }

  float* const scores_[kVectors];
  const Bias bias_[kVectors];
  const __m512 scale_;
  const std::int64_t count_;
  const std::int64_t from_;
  const std::int64_t to_;
  const std::int64_t units_;
  std::int64_t unit_ = 0;
  std::int64_t vector_ = 0;
  std::int64_t key_ = 0;
  __m512 most_[kVectors] = {_mm512_set1_ps(kNoScore), _mm512_set1_ps(kNoScore)};
};

// Sixteen queries that are being weighed.
struct Weighed {
  const float* scores;
  std::uint16_t* weights;
  __m512 top;
  __m512 total;
};

// Scores become weights.
class Weigher {
 public:
  // Of `vectors` times `count` keys, a multiple of kStep.
  Weigher(const Weighed (&vectors)[kVectors], std::int64_t count, std::int64_t vector_count,
          __m512 factor)
      : vectors_{vectors[0], vectors[1]},
        factor_(factor),
        scores_(vectors[0].scores),
        weights_(vectors[0].weights),
        steps_of_vector_(count / kStep),
        units_(vector_count * (count / 2)),
        left_(units_) {}

  std::int64_t units() const { return units_; }
  bool done() const { return left_ == 0; }
  __m512 total(std::int64_t vector) const { return vectors_[vector].total; }

  // Two keys, which share a word, of one vector.
  SIMD_INLINE void step() {
    Weighed& w = vectors_[vector_];
    const __m512 low = weight(scores_, w.top), high = weight(scores_ + 16 * 16, w.top);
    w.total = _mm512_add_ps(w.total, _mm512_add_ps(low, high));
    store(weights_, 0, split(low, high));
    --left_;
    scores_ += 16;
    weights_ += kStep;
    if (left_ % kTileRows == 0) next_step();
  }

 private:
  SIMD_INLINE __m512 weight(const float* scores, __m512 top) const {
    return power_of_two(_mm512_fmsub_ps(_mm512_load_ps(scores), factor_, top));
  }

  void next_step() {
    scores_ += 16 * 16;
    weights_ += kOperandSize - kTileSize;
    if (++step_ < steps_of_vector_) return;
    step_ = 0;
    vector_ = 1;
    scores_ = vectors_[1].scores;
    weights_ = vectors_[1].weights;
  }

  Weighed vectors_[kVectors];
  const __m512 factor_;
  const float* scores_;
  std::uint16_t* weights_;
  const std::int64_t steps_of_vector_;
  const std::int64_t units_;
  std::int64_t left_;
  std::int64_t step_ = 0;
  std::int64_t vector_ = 0;
};
