// Attention on AVX512-BF16, up to 48 queries at a time, where they lie in pairs and halves.
//
//   score of key k += K pairs [pair][k], broadcast, . Q pairs [pair][16 queries]
//   out of feature d += V halves [d][keys k, k + 1], broadcast, . P pairs [k / 2][16 queries]
//
// Nothing is moved before: a pair of features of one key is one 32-bit word, and so is a feature of
// two keys.
#include "core/panels.h"
#include "cpu/panel_attention/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::panel_attention {
namespace {

#include "cpu/simd.h"

#include "cpu/panel_attention/bf16.h"

constexpr std::int64_t kBlock = 256;  // keys whose scores are held at a time
constexpr int kRows = 8;              // keys, or features, of one pass through registers

SIMD_INLINE __m512 add_product(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

SIMD_INLINE std::int32_t word_at(const char* from) {
  std::int32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  return word;
}

// Weighs by fewer operations: beside vdpbf16ps they are not hidden.
class PairSoftmax : public Softmax {
 public:
  // Scores of keys [begin, end), and of the rest of their kRows, become pairs of bf16 weights.
  SIMD_INLINE void weigh(float* scores, std::int64_t begin, std::int64_t end) {
    const auto weight = [&](std::int64_t k, bool all) __attribute__((always_inline)) {
      if (!all && (k < begin || k >= end)) return F{};
      return power(_mm512_fmsub_ps(_mm512_loadu_ps(scores + k * 16), factor_, top_));
    };
    for (std::int64_t k = begin / kRows * kRows; k < end; k += kRows) {
      const bool all = k >= begin && k + kRows <= end;
      UNROLL
      for (int i = 0; i < kRows; i += 2) {
        const auto pair = (__m512i)to_pair(weight(k + i, all), weight(k + i + 1, all));
        __m512& total = i % 4 == 0 ? even_total_ : odd_total_;
        total = add_product(total, pair, _mm512_set1_epi32(0x3f803f80));  // times ones
        _mm512_storeu_si512(scores + (k + i) / 2 * 16, pair);
      }
    }
  }

 private:
  // 2^x for x <= 0, relative error 8e-5; scalef takes the whole part itself and makes 0 of -inf.
  SIMD_INLINE static F power(__m512 x) {
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(0.0780246f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.2260673f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.6958334f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.9999253f));
    return (F)_mm512_scalef_ps(p, x);
  }
};

// One vector of queries and what it is about.
struct Queries {
  std::int64_t token;  // of the first
  __mmask16 lanes;     // the call's
  PairSoftmax softmax;
  __m512 largest;  // score of the block
  __m512 fade;     // of earlier sums
  float* scores;   // [kBlock][16]; then the weights' pairs
  float* out;      // [head_size][16]
};

// One block of keys.
struct Keys {
  std::int64_t block;  // its first token
  std::int64_t begin;  // of those that are the sequence's
  std::int64_t end;
  bool first;  // block of the sequence
};

// Scores of the keys [token, token + kRows), a multiple of kRows.
template <int kVectors>
SIMD_INLINE void score(const Head& head, Queries* queries, const Keys& keys, std::int64_t token) {
  __m512 sums[kRows][kVectors];
  UNROLL
  for (int i = 0; i < kRows; ++i) {
    UNROLL
    for (int v = 0; v < kVectors; ++v) sums[i][v] = _mm512_setzero_ps();
  }
  const char* from = head.pairs(head.key_row, token);
  const char* own[kVectors];
  UNROLL
  for (int v = 0; v < kVectors; ++v) own[v] = head.pairs(head.query_row, queries[v].token);
  for (std::int64_t at = 0; at < head.head_size / 2 * kPairRowBytes; at += kPairRowBytes) {
    __m512i q[kVectors];
    UNROLL
    for (int v = 0; v < kVectors; ++v) q[v] = _mm512_loadu_si512(own[v] + at);
    UNROLL
    for (int i = 0; i < kRows; ++i) {
      const __m512i k = _mm512_set1_epi32(word_at(from + at + 4 * i));
      UNROLL
      for (int v = 0; v < kVectors; ++v) sums[i][v] = add_product(sums[i][v], q[v], k);
    }
  }
  UNROLL
  for (int i = 0; i < kRows; ++i) {
    UNROLL
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(queries[v].scores + (token - keys.block + i) * 16, sums[i][v]);
    }
  }
  const bool all = token >= keys.begin && token + kRows <= keys.end;
  UNROLL
  for (int v = 0; v < kVectors; ++v) {
    __m512& top = queries[v].largest;
    UNROLL
    for (int i = 0; i < kRows; ++i) {
      const bool is_own = all || (token + i >= keys.begin && token + i < keys.end);
      if (is_own) top = _mm512_max_ps(sums[i][v], top);
    }
  }
}

// Features [d, d + kCount) of the sums over the keys, added to what earlier blocks left.
template <int kVectors, int kCount>
SIMD_INLINE void multiply(const Head& head, const Queries* queries, const Keys& keys,
                          std::int64_t d) {
  __m512 sums[kCount][kVectors];
  UNROLL
  for (int i = 0; i < kCount; ++i) {
    UNROLL
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = _mm512_setzero_ps();
      if (keys.first) continue;
      sums[i][v] = _mm512_mul_ps(_mm512_loadu_ps(queries[v].out + (d + i) * 16), queries[v].fade);
    }
  }
  // Of two keys from an even one; `kept` are the halves of a word that are the sequence's: zero
  // weights do not make a neighbour's NaN harmless.
  const auto add = [&](const char* values, std::int64_t token,
                       std::uint32_t kept) __attribute__((always_inline)) {
    __m512i p[kVectors];
    UNROLL
    for (int v = 0; v < kVectors; ++v) {
      p[v] = _mm512_loadu_si512(queries[v].scores + (token - keys.block) / 2 * 16);
    }
    UNROLL
    for (int i = 0; i < kCount; ++i) {
      const auto word = static_cast<std::uint32_t>(word_at(values + i * kHalfRowBytes));
      const __m512i both = _mm512_set1_epi32(static_cast<std::int32_t>(word & kept));
      UNROLL
      for (int v = 0; v < kVectors; ++v) sums[i][v] = add_product(sums[i][v], p[v], both);
    }
  };
  const std::int64_t row = head.value_row + d;
  std::int64_t token = keys.begin;
  const std::int64_t whole = keys.end / 2 * 2;
  if (token % 2 != 0) {
    add(head.halves(row, token - 1), token - 1, 0xffff0000u);
    ++token;
  }
  while (token < whole) {
    const std::int64_t panel_end = (head.panel_of(token) + 1) * head.filled();
    const std::int64_t to = panel_end < whole ? panel_end : whole;
    const char* values = head.halves(row, token);
    for (; token < to; token += 2, values += 4) add(values, token, 0xffffffffu);
  }
  if (token < keys.end) add(head.halves(row, token), token, 0x0000ffffu);
  UNROLL
  for (int i = 0; i < kCount; ++i) {
    UNROLL
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(queries[v].out + (d + i) * 16, sums[i][v]);
    }
  }
}

template <int kVectors>
void multiply_block(const Head& head, const Queries* queries, const Keys& keys) {
  std::int64_t d = 0;
  for (; d + kRows <= head.head_size; d += kRows) {
    multiply<kVectors, kRows>(head, queries, keys, d);
  }
  for (; d < head.head_size; ++d) multiply<kVectors, 1>(head, queries, keys, d);
}

template <int kVectors>
void attend_vectors(const Problem& problem, const Call& call, const Head& head, Queries* queries) {
  const std::int64_t begin = call.start, end = call.start + call.length;
  for (int v = 0; v < kVectors; ++v) queries[v].softmax.reset();
  const std::int64_t first = begin / kStep * kStep;
  for (std::int64_t block = first; block < end; block += kBlock) {
    const std::int64_t own = begin > block ? begin - block : 0;
    const std::int64_t own_end = end - block < kBlock ? end - block : kBlock;
    for (int v = 0; v < kVectors; ++v) queries[v].largest = _mm512_set1_ps(-3.0e38f);
    const Keys keys = {block, block + own, block + own_end, block == first};
    for (std::int64_t token = keys.begin / kRows * kRows; token < keys.end; token += kRows) {
      score<kVectors>(head, queries, keys, token);
    }
    for (int v = 0; v < kVectors; ++v) {
      Queries& q = queries[v];
      if (problem.bias != nullptr) {
        const std::int64_t key = call.bias_start + block + own - begin;
        const float* bias = problem.bias + (call.head * problem.span + key) * problem.span +
                            call.bias_start + (q.token - begin);
        q.fade = q.softmax.begin_block(q.scores, own, own_end, problem, bias, q.lanes);
      } else {
        q.fade = q.softmax.begin_block(q.largest, problem);
      }
      PairSoftmax softmax = q.softmax;  // a copy stays in registers
      softmax.weigh(q.scores, own, own_end);
      q.softmax = softmax;
    }
    multiply_block<kVectors>(head, queries, keys);
  }
  for (int v = 0; v < kVectors; ++v) {
    const Queries& q = queries[v];
    float* out = problem.out + head.panel_of(q.token) * problem.out_stride +
                 head.query_row * kPanelSlots + head.slot_of(q.token);
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), q.softmax.total());
    for (std::int64_t d = 0; d < head.head_size; ++d) {
      const __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(q.out + d * 16), inverse);
      _mm512_mask_storeu_ps(out + d * kPanelSlots, q.lanes, sum);
    }
  }
}

void attend_bf16(const Problem& problem, const Call& call) {
  constexpr int kMostVectors = 3;
  const Head head = head_of(problem, call);
  const std::int64_t from = call.start + call.query, to = from + call.queries;
  const auto below = [](std::int64_t n) {
    return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u;
  };
  Queries queries[kMostVectors];
  auto* memory = static_cast<float*>(call.scratch);
  for (Queries& q : queries) {
    q.scores = memory;
    q.out = memory + kBlock * 16;
    memory = q.out + head.head_size * 16;
  }
  for (std::int64_t token = from / 16 * 16; token < to; token += kMostVectors * 16) {
    for (int v = 0; v < kMostVectors; ++v) {
      queries[v].token = token + v * 16;
      queries[v].lanes =
          static_cast<__mmask16>(below(to - queries[v].token) & ~below(from - queries[v].token));
    }
    if (token + 32 < to) {
      attend_vectors<3>(problem, call, head, queries);
    } else if (token + 16 < to) {
      attend_vectors<2>(problem, call, head, queries);
    } else {
      attend_vectors<1>(problem, call, head, queries);
    }
  }
}

}  // namespace

extern const Kernels kAvx512Bf16Kernels;
const Kernels kAvx512Bf16Kernels = {nullptr, attend_bf16, nullptr};

}  // namespace sparse_runtime::panel_attention
