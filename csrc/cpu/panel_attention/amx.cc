// Attention on AMX bf16 tiles, sixteen queries at a time.
//
//   scores  [16 keys][16 queries] += K [16 keys][32 features] x Q [16 pairs][16 queries][2]
//   out [16 features][16 queries] += V [16 features][32 keys] x P [16 pairs][16 queries][2]
//
// Q and V are read where the linear before has left them. K is brought from pairs to one row a key
// once a call (a transposition of 32-bit words), or, where they are more than a block, once a block
// and vector of queries. Keys are counted from the multiple of 32 tokens
// before the sequence, as V's tiles are; the weights of tokens outside of it are zero, and so are
// their values, so that nothing of a neighbour comes in.
#include "core/panels.h"
#include "cpu/panel_attention/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::panel_attention {
namespace {

#include "cpu/simd.h"

#include "cpu/panel_attention/bf16.h"
#include "cpu/panel_attention/tiles.h"

static_assert(kStep == 32);                     // keys of one value tile, features of one key tile
constexpr std::int64_t kGroup = 4 * kTileRows;  // features whose sums the tiles hold at a time

// Memory of one call; scores and weights of two steps in turn.
struct Scratch {
  std::uint16_t* keys;        // [kKeyBlock][padded]
  float* scores[2];           // [32 keys][16 queries]
  std::uint32_t* weights[2];  // [16 pairs of keys][16 queries]
  std::uint16_t* edges;       // [2][padded 16][32]: values of a step that is not whole
  float* sums;                // [kGroup][16], on their way out
  float* spilled;             // [kGroup][16]
};

// Keys [first, first + count) from pairs to rows; features beyond the head are zero.
void gather_keys(const Head& head, std::int64_t first, std::int64_t count, std::uint16_t* keys) {
  for (std::int64_t d = 0; d < head.padded; d += kStep) {
    for (std::int64_t k = 0; k < count; k += kTileRows) {
      __m512i rows[16];
      const char* from = head.pairs(head.key_row + d, first + k);
      for (int i = 0; i < 16; ++i) {
        rows[i] = d + 2 * i < head.head_size ? _mm512_loadu_si512(from + i * kPairRowBytes)
                                             : _mm512_setzero_si512();
      }
      transpose(rows);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(keys + (k + i) * head.padded + d, rows[i]);
    }
  }
}

// The values of 32 keys with those outside of [begin, end) as zero.
void copy_edge(const Head& head, std::int64_t token, std::int64_t begin, std::int64_t end,
               std::uint16_t* edge) {
  const auto bits_below = [](std::int64_t n) {
    return n <= 0 ? 0u : n >= kStep ? 0xffffffffu : (1u << n) - 1u;
  };
  const __mmask32 mask = bits_below(end - token) & ~bits_below(begin - token);
  const std::int64_t rows = round_up(head.head_size, kTileRows);
  for (std::int64_t d = 0; d < rows; ++d) {
    const __mmask32 kept = d < head.head_size ? mask : 0;
    _mm512_storeu_si512(edge + d * kStep,
                        _mm512_maskz_loadu_epi16(kept, head.halves(head.value_row + d, token)));
  }
}

// Tiles 0 to 3, the sums of kGroup features, to and from memory.
SIMD_INLINE void store_sums(float* to) {
  _tile_stored(0, to, 64);
  _tile_stored(1, to + 16 * kTileRows, 64);
  _tile_stored(2, to + 2 * 16 * kTileRows, 64);
  _tile_stored(3, to + 3 * 16 * kTileRows, 64);
}

SIMD_INLINE void load_sums(const float* from) {
  _tile_loadd(0, from, 64);
  _tile_loadd(1, from + 16 * kTileRows, 64);
  _tile_loadd(2, from + 2 * 16 * kTileRows, 64);
  _tile_loadd(3, from + 3 * 16 * kTileRows, 64);
}

SIMD_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

Scratch divide(void* memory, std::int64_t padded) {
  Scratch s;
  s.keys = static_cast<std::uint16_t*>(memory);
  s.scores[0] = reinterpret_cast<float*>(s.keys + kKeyBlock * padded);
  s.scores[1] = s.scores[0] + kStep * 16;
  s.weights[0] = reinterpret_cast<std::uint32_t*>(s.scores[1] + kStep * 16);
  s.weights[1] = s.weights[0] + kStep / 2 * 16;
  s.edges = reinterpret_cast<std::uint16_t*>(s.weights[1] + kStep / 2 * 16);
  s.sums = reinterpret_cast<float*>(s.edges + 2 * padded * kStep);
  s.spilled = s.sums + kGroup * 16;
  return s;
}

// Sixteen queries and 32 keys.
struct Step {
  std::int64_t query;  // token of the first; a multiple of 16
  std::int64_t key;    // token of the first; a multiple of kStep
};

// One head of one sequence, step by step, for up to kGroup of its features. The next step's scores
// and the last one's values are issued between the weights of a step: matrix unit and vector units
// work side by side only within the few hundred operations that a core looks ahead.
template <bool kBias>
class Attention {
 public:
  Attention(const Problem& problem, const Call& call, const Head& head, std::int64_t feature)
      : problem_(problem),
        call_(call),
        head_(head),
        feature_(feature),
        features_(head.head_size - feature < kGroup ? head.head_size - feature : kGroup),
        scratch_(divide(call.scratch, head.padded)),
        begin_(call.start),
        end_(call.start + call.length),
        from_(begin_ + call.query),
        to_(from_ + call.queries),
        first_key_(begin_ / kStep * kStep),
        last_key_((end_ - 1) / kStep * kStep),
        rows_a_step_(features_ / ((last_key_ - first_key_) / kStep + 1) + 1) {}

  void run() {
    prepare();
    Softmax softmax(problem_.scale);
    Step now = {from_ / 16 * 16, first_key_};
    bring_keys(now);
    score(now, 0);
    const std::uint32_t* pending = nullptr;  // weights of the step before this one
    Step before = now;
    Totals totals;
    __m512 out_total = {};  // of the queries that are being written
    std::int64_t out_query = -1;
    for (int turn = 0; now.query < to_; turn = 1 - turn) {
      const Step next = now.key == last_key_ ? Step{now.query + 16, first_key_}
                                             : Step{now.query, now.key + kStep};
      const bool first = now.key == first_key_, more = next.query < to_;
      const Scores<kBias> scores = scores_of(now, turn);
      if (more) bring_keys(next);
      if (first) {
        out_total = totals.sum();
        totals = {};
        softmax.begin(scores);
      }
      const Totals earlier = totals;
      totals = pass(softmax, scores, totals, turn, more ? &next : nullptr, pending, before.key);
      if (first) {
        if (pending != nullptr) {
          store_sums(scratch_.sums);
          out_query = before.query;
        }
        clear_sums();
      }
      if (totals.overflow(lanes_of(now.query))) totals = raise(softmax, scores, earlier, turn);
      if (out_query >= 0) write(out_query, out_total, now.key);
      before = now;
      pending = scratch_.weights[turn];
      now = next;
    }
    const Operand last = values_of(before.key);
    settle();
    for (int piece = 0; piece < kPieces; ++piece) multiply_piece(last, pending, piece);
    store_sums(scratch_.sums);
    write_rows(before.query, totals.sum(), 0, features_);
  }

 private:
  // Which of a vector's sixteen queries are the call's.
  __mmask16 lanes_of(std::int64_t query) const {
    const auto below = [](std::int64_t n) {
      return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u;
    };
    return static_cast<__mmask16>(below(to_ - query) & ~below(from_ - query));
  }

  bool has_blocks() const { return last_key_ + kStep - first_key_ > kKeyBlock; }

  void prepare() {
    if (!has_blocks()) {
      gather_keys(head_, first_key_, last_key_ + kStep - first_key_, scratch_.keys);
    }
    const std::int64_t edge_size = round_up(head_.head_size, kTileRows) * kStep;
    if (first_key_ < begin_) copy_edge(head_, first_key_, begin_, end_, scratch_.edges);
    if (last_key_ + kStep > end_) {
      copy_edge(head_, last_key_, begin_, end_, scratch_.edges + edge_size);
    }
  }

  // Of more than a block, each is brought when its first step comes.
  void bring_keys(const Step& step) {
    if (!has_blocks() || (step.key - first_key_) % kKeyBlock != 0) return;
    const std::int64_t left = last_key_ + kStep - step.key;
    gather_keys(head_, step.key, left < kKeyBlock ? left : kKeyBlock, scratch_.keys);
  }

  struct Operand {
    const char* rows;
    std::int64_t row_bytes;
  };

  // Scores and values are cut into four pieces each, of two and one tile products.
  static constexpr int kPieces = 4;

  // A step's weights, with the next step's scores (or null) and the last one's values between.
  SIMD_INLINE Totals pass(const Softmax& softmax, const Scores<kBias>& scores, Totals totals,
                          int turn, const Step* next, const std::uint32_t* pending,
                          std::int64_t key) const {
    static_assert(2 * kPieces * Softmax::kTogether == kStep);
    const Softmax s = softmax;  // a copy stays in registers
    std::uint32_t* weights = scratch_.weights[turn];
    const Operand queries = next != nullptr ? queries_of(*next) : Operand{};
    const Operand keys = next != nullptr ? keys_of(*next) : Operand{};
    const Operand values = pending != nullptr ? values_of(key) : Operand{};
    settle();
    if (next != nullptr) clear_scores();
    UNROLL for (int piece = 0; piece < kPieces; ++piece) {
      if (next != nullptr) score_piece(queries, keys, piece);
      s.weigh(scores, piece * Softmax::kTogether, weights, totals);
    }
    UNROLL for (int piece = 0; piece < kPieces; ++piece) {
      if (pending != nullptr) multiply_piece(values, pending, piece);
      if (piece == 0 && next != nullptr) store_scores(1 - turn);
      s.weigh(scores, (kPieces + piece) * Softmax::kTogether, weights, totals);
    }
    return totals;
  }

  Operand queries_of(const Step& step) const {
    return {head_.pairs(head_.query_row, step.query), kPairRowBytes};
  }
  Operand keys_of(const Step& step) const {
    const std::uint16_t* keys = scratch_.keys + (step.key - first_key_) % kKeyBlock * head_.padded;
    return {reinterpret_cast<const char*>(keys), 2 * head_.padded};
  }

  SIMD_INLINE static void clear_scores() {
    _tile_zero(4);
    _tile_zero(5);
  }

  // Sixteen keys, every second 32 features.
  SIMD_INLINE void score_piece(const Operand& queries, const Operand& keys, int piece) const {
    const char* key_rows = keys.rows + piece % 2 * kTileRows * keys.row_bytes;
    for (std::int64_t d = piece / 2 * kStep; d < head_.padded; d += 2 * kStep) {
      if (piece % 2 == 0 || head_.padded > 2 * kStep) {
        _tile_loadd(6, queries.rows + d / 2 * kPairRowBytes, kPairRowBytes);
      }
      _tile_loadd(7, key_rows + 2 * d, keys.row_bytes);
      if (piece % 2 == 0) {
        _tile_dpbf16ps(4, 7, 6);
      } else {
        _tile_dpbf16ps(5, 7, 6);
      }
    }
  }

  SIMD_INLINE void store_scores(int turn) const {
    _tile_stored(4, scratch_.scores[turn], 64);
    _tile_stored(5, scratch_.scores[turn] + kTileRows * 16, 64);
  }

  void score(const Step& step, int turn) const {
    const Operand queries = queries_of(step), keys = keys_of(step);
    settle();
    clear_scores();
    UNROLL for (int piece = 0; piece < kPieces; ++piece) {
      score_piece(queries, keys, piece);
    }
    store_scores(turn);
  }

  SIMD_INLINE Scores<kBias> scores_of(const Step& step, int turn) const {
    Scores<kBias> scores = {};
    scores.scores = scratch_.scores[turn];
    scores.begin = begin_ > step.key ? begin_ - step.key : 0;
    scores.end = end_ - step.key < kStep ? end_ - step.key : kStep;
    if (kBias) {
      const std::int64_t key = call_.bias_start + step.key - begin_;
      scores.bias = problem_.bias + (call_.head * problem_.span + key) * problem_.span +
                    call_.bias_start + (step.query - begin_);
      scores.span = problem_.span;
      scores.lanes = lanes_of(step.query);
    }
    return scores;
  }

  // The values of 32 keys.
  Operand values_of(std::int64_t key) const {
    // Rows beyond the head are another's, or beyond the panel: those are read from a copy, too.
    const bool whole = head_.head_size % kTileRows == 0;
    if (key >= begin_ && key + kStep <= end_ && whole) {
      return {head_.halves(head_.value_row + feature_, key), kHalfRowBytes};
    }
    const std::int64_t edge_size = round_up(head_.head_size, kTileRows) * kStep;
    std::uint16_t* edge = scratch_.edges + (key >= begin_ ? edge_size : 0);
    if (!whole) copy_edge(head_, key, begin_, end_, edge);
    return {reinterpret_cast<const char*>(edge + feature_ * kStep), 2 * kStep};
  }

  // The tile of this number += V[feature][key] * P[key][query].
  SIMD_INLINE void multiply_piece(const Operand& values, const std::uint32_t* weights,
                                  int piece) const {
    if (piece * kTileRows >= features_) return;
    if (piece == 0) _tile_loadd(6, weights, 64);
    _tile_loadd(7, values.rows + piece * kTileRows * values.row_bytes, values.row_bytes);
    if (piece == 0) _tile_dpbf16ps(0, 7, 6);
    if (piece == 1) _tile_dpbf16ps(1, 7, 6);
    if (piece == 2) _tile_dpbf16ps(2, 7, 6);
    if (piece == 3) _tile_dpbf16ps(3, 7, 6);
  }

  // Scores have outgrown what the weights count from. totals: without this step's.
  __attribute__((noinline)) Totals raise(Softmax& softmax, const Scores<kBias>& scores,
                                         Totals totals, int turn) const {
    const __m512 fade = softmax.raise(scores);
    totals = {_mm512_mul_ps(totals.even, fade), _mm512_mul_ps(totals.odd, fade)};
    store_sums(scratch_.spilled);
    for (std::int64_t i = 0; i < kGroup * 16; i += 16) {
      const __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(scratch_.spilled + i), fade);
      _mm512_storeu_ps(scratch_.spilled + i, sum);
    }
    settle();
    load_sums(scratch_.spilled);
    for (std::int64_t k = 0; k < kStep; k += Softmax::kTogether) {
      softmax.weigh(scores, k, scratch_.weights[turn], totals);
    }
    return totals;
  }

  // This step's share of the rows of the queries before.
  SIMD_INLINE void write(std::int64_t query, __m512 total, std::int64_t key) const {
    const std::int64_t first = (key - first_key_) / kStep * rows_a_step_;
    const std::int64_t end = first + rows_a_step_;
    write_rows(query, total, first, end < features_ ? end : features_);
  }

  SIMD_INLINE void write_rows(std::int64_t query, __m512 total, std::int64_t first,
                              std::int64_t end) const {
    float* out = problem_.out + query / kPanelSlots * problem_.out_stride +
                 (head_.query_row + feature_) * kPanelSlots + query % kPanelSlots;
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), total);
    const __mmask16 lanes = lanes_of(query);
    for (std::int64_t d = first; d < end; ++d) {
      const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(scratch_.sums + d * 16), inverse);
      _mm512_mask_storeu_ps(out + d * kPanelSlots, lanes, v);
    }
  }

  const Problem& problem_;
  const Call& call_;
  const Head& head_;
  const std::int64_t feature_;  // of the head, the first
  const std::int64_t features_;
  const Scratch scratch_;
  const std::int64_t begin_;  // tokens of the sequence
  const std::int64_t end_;
  const std::int64_t from_;  // tokens of the call's queries
  const std::int64_t to_;
  const std::int64_t first_key_;  // tokens of the first and the last step
  const std::int64_t last_key_;
  const std::int64_t rows_a_step_;
};

template <bool kBias>
void attend(const Problem& problem, const Call& call, const Head& head) {
  for (std::int64_t d = 0; d < head.head_size; d += kGroup) {
    Attention<kBias>(problem, call, head, d).run();
  }
}

void attend_bf16(const Problem& problem, const Call& call) {
  const Head head = head_of(problem, call);
  _tile_loadconfig(&kConfig);
  problem.bias == nullptr ? attend<false>(problem, call, head) : attend<true>(problem, call, head);
  _tile_release();
}

}  // namespace

extern const Kernels kAmxKernels;
const Kernels kAmxKernels = {nullptr, attend_bf16, nullptr};

}  // namespace sparse_runtime::panel_attention
