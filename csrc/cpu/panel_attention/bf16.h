// What bf16 attention needs besides tiles: the softmax. To be included within the unit's anonymous
// namespace, after cpu/simd.h.

#include "cpu/panel_attention/head.h"

constexpr std::int64_t kStep = 32;                       // keys go by this many
constexpr std::int64_t kPairRowBytes = 4 * kPanelSlots;  // pairs form
constexpr std::int64_t kHalfRowBytes = 2 * kPanelSlots;  // halves form

std::int64_t round_up(std::int64_t x, std::int64_t to) {
  return (x + to - 1) / to * to;
}

SIMD_INLINE std::int64_t padded(const Head& head) {
  return round_up(head.head_size, kStep);
}

// 2^x for x <= 0, relative error 1e-4: half a unit of the bf16 that it becomes is 2e-3.
SIMD_INLINE __m512 power_of_two(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // NaN, the second operand, stays
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.0558011f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.2401645f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.6931368f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// Of keys [begin, end), query by query.
SIMD_INLINE __m512 largest(const float* scores, std::int64_t begin, std::int64_t end) {
  __m512 a = _mm512_set1_ps(-3.0e38f), b = a, c = a, d = a;  // independent, for latency
  std::int64_t k = begin;
  for (; k + 4 <= end; k += 4) {
    const float* row = scores + k * 16;
    a = _mm512_max_ps(_mm512_loadu_ps(row), a);
    b = _mm512_max_ps(_mm512_loadu_ps(row + 16), b);
    c = _mm512_max_ps(_mm512_loadu_ps(row + 32), c);
    d = _mm512_max_ps(_mm512_loadu_ps(row + 48), d);
  }
  for (; k < end; ++k) a = _mm512_max_ps(_mm512_loadu_ps(scores + k * 16), a);
  return _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
}

// The running softmax of sixteen queries, in units of log 2.
class Softmax {
 public:
  void reset() {
    top_ = _mm512_set1_ps(-3.0e38f);
    even_total_ = odd_total_ = _mm512_setzero_ps();
  }

  // Looks through a block of scores, of which keys [begin, end) are the sequence's, and adds the
  // bias. Returns the factor by which earlier sums fade.
  __m512 begin_block(float* scores, std::int64_t begin, std::int64_t end, const Problem& problem,
                     const float* bias, __mmask16 lanes) {
    if (bias == nullptr) return begin_block(largest(scores, begin, end), problem);
    const __m512 scale = _mm512_set1_ps(problem.scale * kLog2E);
    __m512 top = top_;
    for (std::int64_t k = begin; k < end; ++k) {
      const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(scores + k * 16), scale);
      const __m512 added = _mm512_maskz_loadu_ps(lanes, bias + (k - begin) * problem.span);
      // Where all keys are hidden alike, a sum of -inf is still one to count from. NaN stays.
      const __m512 sum = _mm512_max_ps(_mm512_set1_ps(-2.9e38f),
                                       _mm512_fmadd_ps(added, _mm512_set1_ps(kLog2E), v));
      _mm512_storeu_ps(scores + k * 16, sum);
      top = _mm512_max_ps(sum, top);
    }
    return count_from(top, _mm512_set1_ps(1.0f));
  }

  // The same without bias, where the largest score is known.
  __m512 begin_block(__m512 largest, const Problem& problem) {
    // The scale does not change which score is the largest, as long as it is not negative.
    const __m512 scale = _mm512_set1_ps(problem.scale * kLog2E);
    return count_from(_mm512_max_ps(_mm512_mul_ps(largest, scale), top_), scale);
  }

  // Scores of kStep keys from k on become pairs of bf16 weights, in the same memory.
  SIMD_INLINE void weigh(float* scores, std::int64_t k, std::int64_t begin, std::int64_t end) {
    const __m512i none = _mm512_setzero_si512();
    const std::int64_t stop = k + kStep;
    auto* pairs = reinterpret_cast<std::uint32_t*>(scores);
    if (k >= begin && stop <= end) {
      for (; k < stop; k += 2) {
        const __m512i even = weight(scores, k, even_total_);
        put(pairs, k, even, weight(scores, k + 1, odd_total_));
      }
      return;
    }
    const auto is_own = [&](std::int64_t key) { return key >= begin && key < end; };
    for (; k < stop; k += 2) {
      const __m512i even = is_own(k) ? weight(scores, k, even_total_) : none;
      put(pairs, k, even, is_own(k + 1) ? weight(scores, k + 1, odd_total_) : none);
    }
  }

  __m512 total() const { return _mm512_add_ps(even_total_, odd_total_); }

 protected:
  __m512 top_;  // largest score so far
  __m512 even_total_;
  __m512 odd_total_;
  __m512 factor_;

 private:
  static constexpr float kLog2E = 1.44269504f;

  __m512 count_from(__m512 top, __m512 factor) {
    const __m512 fade = power_of_two(_mm512_sub_ps(top_, top));
    factor_ = factor;
    top_ = top;
    even_total_ = _mm512_mul_ps(total(), fade);
    odd_total_ = _mm512_setzero_ps();
    return fade;
  }

  // Rounded by half a unit up: weights are at most 1, so nothing overflows.
  SIMD_INLINE __m512i weight(const float* scores, std::int64_t k, __m512& total) {
    const __m512 p = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(scores + k * 16), factor_, top_));
    total = _mm512_add_ps(total, p);
    return _mm512_add_epi32(_mm512_castps_si512(p), _mm512_set1_epi32(0x8000));
  }

  SIMD_INLINE static void put(std::uint32_t* pairs, std::int64_t k, __m512i even, __m512i odd) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    const __m512i pair = _mm512_or_si512(_mm512_srli_epi32(even, 16), _mm512_and_si512(odd, upper));
    _mm512_storeu_si512(pairs + k / 2 * 16, pair);
  }
};
