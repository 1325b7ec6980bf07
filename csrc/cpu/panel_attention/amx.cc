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

static_assert(kStep == 32);  // keys of one value tile, features of one key tile

// Memory of one call.
struct Scratch {
  std::uint16_t* keys;   // [kKeyBlock][padded]
  float* scores[2];      // [kKeyBlock][16]; then the weights' pairs
  std::uint16_t* edges;  // [2][padded 16][32]: values of a block that is not whole
  float* out;            // [padded][16]
  float* partial[2];     // [padded][16]
};

// Keys [first, first + count) from pairs to rows; features beyond the head are zero.
void gather_keys(const Head& head, std::int64_t first, std::int64_t count, std::uint16_t* keys) {
  for (std::int64_t k = 0; k < count; k += kTileRows) {
    for (std::int64_t d = 0; d < padded(head); d += kStep) {
      __m512i rows[16];
      const char* from = head.pairs(head.key_row + d, first + k);
      for (int i = 0; i < 16; ++i) {
        rows[i] = d + 2 * i < head.head_size ? _mm512_loadu_si512(from + i * kPairRowBytes)
                                             : _mm512_setzero_si512();
      }
      transpose(rows);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(keys + (k + i) * padded(head) + d, rows[i]);
    }
  }
}

// scores[32][16]: 32 keys, already rows, and the queries at `query`.
SIMD_INLINE void score(const Head& head, const std::uint16_t* keys, std::int64_t query,
                       float* scores) {
  const char* queries = head.pairs(head.query_row, query);
  const std::int64_t key_bytes = 2 * padded(head);
  _tile_zero(4);
  _tile_zero(5);
  for (std::int64_t d = 0; d < padded(head); d += kStep) {
    _tile_loadd(6, queries + d / 2 * kPairRowBytes, kPairRowBytes);
    _tile_loadd(7, keys + d, key_bytes);
    _tile_dpbf16ps(4, 7, 6);
    _tile_loadd(7, keys + kTileRows * padded(head) + d, key_bytes);
    _tile_dpbf16ps(5, 7, 6);
  }
  _tile_stored(4, scores, 64);
  _tile_stored(5, scores + kTileRows * 16, 64);
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

// The values of a block of keys, where multiply() finds them.
struct Values {
  const Head& head;
  std::int64_t first;  // token of the block's first key
  std::int64_t begin;  // tokens of the sequence
  std::int64_t end;
  const std::uint16_t* edges;  // at [0] the sequence's first, at [1] its last partial step
};

// Tiles 0 to 3 += V[feature][key] * P[key][query] for the 32 keys from k on, features from d on.
SIMD_INLINE void multiply(const Values& values, const float* weights, std::int64_t k,
                          std::int64_t d) {
  const Head& head = values.head;
  const std::int64_t left = (head.head_size - d + kTileRows - 1) / kTileRows;
  const std::int64_t token = values.first + k;
  const char* from = head.halves(head.value_row + d, token);
  std::int64_t row_bytes = kHalfRowBytes;
  // Rows beyond the head are another's, or beyond the panel: those are read from a copy, too.
  const bool whole = head.head_size % kTileRows == 0;
  if (token < values.begin || token + kStep > values.end || !whole) {
    const std::int64_t edge_size = round_up(head.head_size, kTileRows) * kStep;
    const std::uint16_t* edge = values.edges;
    if (token >= values.begin) edge += edge_size;
    if (!whole) {
      copy_edge(head, token, values.begin, values.end, const_cast<std::uint16_t*>(edge));
    }
    from = reinterpret_cast<const char*>(edge + d * kStep);
    row_bytes = 2 * kStep;
  }
  _tile_loadd(6, weights + k / 2 * 16, 64);
  _tile_loadd(7, from, row_bytes);
  _tile_dpbf16ps(0, 7, 6);
  if (left > 1) {
    _tile_loadd(7, from + kTileRows * row_bytes, row_bytes);
    _tile_dpbf16ps(1, 7, 6);
  }
  if (left > 2) {
    _tile_loadd(7, from + 2 * kTileRows * row_bytes, row_bytes);
    _tile_dpbf16ps(2, 7, 6);
  }
  if (left > 3) {
    _tile_loadd(7, from + 3 * kTileRows * row_bytes, row_bytes);
    _tile_dpbf16ps(3, 7, 6);
  }
}

SIMD_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// partial[feature][16] of the features from d on.
SIMD_INLINE void store_sums(const Head& head, std::int64_t d, float* partial) {
  const std::int64_t left = (head.head_size - d + kTileRows - 1) / kTileRows;
  float* to = partial + d * 16;
  _tile_stored(0, to, 64);
  if (left > 1) _tile_stored(1, to + 16 * kTileRows, 64);
  if (left > 2) _tile_stored(2, to + 2 * 16 * kTileRows, 64);
  if (left > 3) _tile_stored(3, to + 3 * 16 * kTileRows, 64);
}

Scratch divide(void* memory, std::int64_t padded) {
  Scratch s;
  s.keys = static_cast<std::uint16_t*>(memory);
  s.scores[0] = reinterpret_cast<float*>(s.keys + kKeyBlock * padded);
  s.scores[1] = s.scores[0] + kKeyBlock * 16;
  s.edges = reinterpret_cast<std::uint16_t*>(s.scores[1] + kKeyBlock * 16);
  s.out = reinterpret_cast<float*>(s.edges + 2 * padded * kStep);
  s.partial[0] = s.out + padded * 16;
  s.partial[1] = s.partial[0] + padded * 16;
  return s;
}

// Sixteen queries and one block of keys.
struct Step {
  std::int64_t query;  // token of the first; a multiple of 16
  std::int64_t block;  // token of the first key; a multiple of kStep
  std::int64_t count;  // keys, in whole steps
};

// One head of one sequence, step by step. Within a step the work goes by 32 keys, so that the
// matrix unit has the next step's scores and this one's values to work on while the vector units
// weigh.
class Attention {
 public:
  Attention(const Problem& problem, const Call& call, const Head& head)
      : problem_(problem),
        call_(call),
        head_(head),
        scratch_(divide(call.scratch, padded(head))),
        begin_(call.start),
        end_(call.start + call.length),
        from_(begin_ + call.query),
        to_(from_ + call.queries),
        first_block_(begin_ / kStep * kStep),
        all_keys_(round_up(end_ - first_block_, kStep)) {}

  void run() {
    prepare();
    Step next = step(from_ / 16 * 16, first_block_);
    bring_keys(next);
    for (std::int64_t k = 0; k < next.count; k += kStep) score_keys(next, k, 0);
    for (int turn = 0;; turn = 1 - turn) {
      const Step now = next;
      const bool last_block = now.block + kKeyBlock >= end_;
      next =
          last_block ? step(now.query + 16, first_block_) : step(now.query, now.block + kKeyBlock);
      const bool more = next.query < to_;
      if (more) bring_keys(next);
      const __m512 fade = begin_weighing(now, turn);
      multiply_all(now, next, more, turn);
      if (waits_) collect();
      waiting_ = {now, fade, softmax_.total(), scratch_.partial[turn], last_block};
      waits_ = true;
      if (!more) break;
    }
    collect();
  }

 private:
  // A step whose partial sums are on their way.
  struct Waiting {
    Step step;
    __m512 fade;
    __m512 total;
    const float* partial;
    bool last_block;
  };

  Step step(std::int64_t query, std::int64_t block) const {
    const std::int64_t left = round_up(end_ - block, kStep);
    return {query, block, left < kKeyBlock ? left : kKeyBlock};
  }

  // Which of a vector's sixteen queries are the call's.
  __mmask16 lanes_of(std::int64_t query) const {
    const auto below = [](std::int64_t n) {
      return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u;
    };
    return static_cast<__mmask16>(below(to_ - query) & ~below(from_ - query));
  }

  void prepare() {
    if (all_keys_ <= kKeyBlock) gather_keys(head_, first_block_, all_keys_, scratch_.keys);
    const std::int64_t edge_size = round_up(head_.head_size, kTileRows) * kStep;
    copy_edge(head_, first_block_, begin_, end_, scratch_.edges);
    copy_edge(head_, (end_ - 1) / kStep * kStep, begin_, end_, scratch_.edges + edge_size);
  }

  void bring_keys(const Step& step) {
    if (all_keys_ > kKeyBlock) gather_keys(head_, step.block, step.count, scratch_.keys);
  }

  SIMD_INLINE void score_keys(const Step& step, std::int64_t k, int turn) {
    score(head_, scratch_.keys + k * padded(head_), step.query, scratch_.scores[turn] + k * 16);
  }

  // Keys of a block that are the sequence's.
  std::int64_t own_begin(const Step& step) const {
    return begin_ > step.block ? begin_ - step.block : 0;
  }
  std::int64_t own_end(const Step& step) const {
    return end_ - step.block < step.count ? end_ - step.block : step.count;
  }

  __m512 begin_weighing(const Step& step, int turn) {
    if (step.block == first_block_) softmax_.reset();
    const std::int64_t own = own_begin(step);
    const float* bias = nullptr;
    if (problem_.bias != nullptr) {
      const std::int64_t key = call_.bias_start + step.block + own - begin_;
      bias = problem_.bias + (call_.head * problem_.span + key) * problem_.span + call_.bias_start +
             (step.query - begin_);
    }
    return softmax_.begin_block(scratch_.scores[turn], own, own_end(step), problem_, bias,
                                lanes_of(step.query));
  }

  // Weights and sums of one step, and the scores of the next.
  void multiply_all(const Step& now, const Step& next, bool more, int turn) {
    const Values values = {head_, now.block, begin_, end_, scratch_.edges};
    float* scores = scratch_.scores[turn];
    const std::int64_t begin = own_begin(now), end = own_end(now);
    Softmax softmax = softmax_;  // a copy stays in registers
    clear_sums();
    for (std::int64_t k = 0; k < now.count; k += kStep) {
      if (more && k < next.count) score_keys(next, k, 1 - turn);
      softmax.weigh(scores, k, begin, end);
      // One behind: what has just been stored is not there to be loaded as a tile yet.
      if (k != 0) multiply(values, scores, k - kStep, 0);
    }
    softmax_ = softmax;
    multiply(values, scores, now.count - kStep, 0);
    store_sums(head_, 0, scratch_.partial[turn]);
    for (std::int64_t k = now.count; more && k < next.count; k += kStep) {
      score_keys(next, k, 1 - turn);
    }
    for (std::int64_t d = 4 * kTileRows; d < head_.head_size; d += 4 * kTileRows) {
      clear_sums();
      for (std::int64_t k = 0; k < now.count; k += kStep) multiply(values, scores, k, d);
      store_sums(head_, d, scratch_.partial[turn]);
    }
  }

  void collect() const {
    const Waiting& w = waiting_;
    if (!w.last_block || w.step.block != first_block_) {
      for (std::int64_t d = 0; d < head_.head_size; ++d) {
        __m512 sum = _mm512_loadu_ps(w.partial + d * 16);
        if (w.step.block != first_block_) {
          sum = _mm512_fmadd_ps(_mm512_loadu_ps(scratch_.out + d * 16), w.fade, sum);
        }
        _mm512_storeu_ps(scratch_.out + d * 16, sum);
      }
    }
    if (!w.last_block) return;
    const float* sums = w.step.block == first_block_ ? w.partial : scratch_.out;
    float* out = problem_.out + w.step.query / kPanelSlots * problem_.out_stride +
                 head_.query_row * kPanelSlots + w.step.query % kPanelSlots;
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), w.total);
    const __mmask16 lanes = lanes_of(w.step.query);
    for (std::int64_t d = 0; d < head_.head_size; ++d) {
      const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(sums + d * 16), inverse);
      _mm512_mask_storeu_ps(out + d * kPanelSlots, lanes, v);
    }
  }

  const Problem& problem_;
  const Call& call_;
  const Head& head_;
  const Scratch scratch_;
  const std::int64_t begin_;  // tokens of the sequence
  const std::int64_t end_;
  const std::int64_t from_;  // tokens of the call's queries
  const std::int64_t to_;
  const std::int64_t first_block_;
  const std::int64_t all_keys_;
  Softmax softmax_ = {};
  Waiting waiting_ = {};
  bool waits_ = false;
};

void attend_bf16(const Problem& problem, const Call& call) {
  const Head head = head_of(problem, call);
  _tile_loadconfig(&kConfig);
  Attention(problem, call, head).run();
  _tile_release();
}

}  // namespace

extern const Kernels kAmxKernels;
const Kernels kAmxKernels = {nullptr, attend_bf16, nullptr};

}  // namespace sparse_runtime::panel_attention
