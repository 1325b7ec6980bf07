// Attention in float32 accuracy on AMX bf16 tiles: each float is the sum of three bf16, each
// product that of six (all but those below 2^-24 of it), as in Henry, Tang and Heinecke,
// "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations"
// (2019).
//
//   scores [32 keys][32 queries] += K x Q;   out [32 features][32 queries] += V x P
//
// Both in blocks of two by two tiles, a group of 32 queries at a time. What else there is to do,
// the vector units do beside the products:
//
//   scores of the next group    weights of this one; the first time, the values are split
//   values of this group        the next group's largest scores; the queries after it are split
#include "core/panels.h"
#include "cpu/simd_headers.h"
#include "cpu/split_attention/kernels.h"
#include "cpu/split_attention/memory.h"

namespace sparse_runtime::split_attention {
namespace {

using panel_attention::Call;
using panel_attention::kKeyBlock;
using panel_attention::Problem;

#include "cpu/simd.h"

// Each reads what those before define.
#include "cpu/panel_attention/tiles.h"
#include "cpu/split_attention/multiply.h"
#include "cpu/split_attention/split.h"
#include "cpu/split_attention/weigh.h"

#include "cpu/split_attention/chores.h"

// Keys that are scored together.
struct Block {
  std::int64_t first;  // token; a multiple of 16
  std::int64_t count;  // in whole steps
  bool begins;         // the sequence
  bool ends;           // it
};

struct Group {
  std::int64_t query;    // token of the first; a multiple of 16
  std::int64_t vectors;  // of sixteen queries; 0: there is none
};

// One head of one sequence.
class Attention {
 public:
  Attention(const Problem& problem, const Call& call)
      : problem_(problem),
        call_(call),
        memory_(problem.head_size),
        scratch_(static_cast<char*>(call.scratch)),
        begin_(call.start),
        end_(call.start + call.length),
        from_(begin_ + call.query),
        to_(from_ + call.queries),
        first_(begin_ / kTileRows * kTileRows) {}

  // False if the values' range was not one that the parts hold.
  bool run() {
    const bool one_block = end_ - first_ <= kKeyBlock;
    const std::int64_t start = from_ / kTileRows * kTileRows;
    // All keys and values are split anew for some groups of queries, unless one block holds them.
    const std::int64_t stride = one_block ? to_ - start : kGroups * kVectors * kTileRows;
    for (std::int64_t query = start; query < to_; query += stride) {
      const std::int64_t stop = query + stride < to_ ? query + stride : to_;
      for (std::int64_t first = first_; first < end_; first += kKeyBlock) {
        const std::int64_t left = (end_ - first + kStep - 1) / kStep * kStep;
        block_ = {first, left < kKeyBlock ? left : kKeyBlock, first == first_,
                  first + kKeyBlock >= end_};
        attend_block(query, stop);
      }
    }
    return below_the_top() && above_the_bottom() && scores_are_exact();
  }

 private:
  // A weight's exponent is an exact product less the rounded largest score: they differ by half a
  // unit of that at most, which must not show beside an exponent.
  bool scores_are_exact() const {
    const auto terms = static_cast<float>(problem_.head_size);
    return queries_.value() * keys_.value() * terms * problem_.scale < 0x1p24f;
  }
  // Sums of products and their parts stay far from infinity; parts of queries and keys that are
  // lost below 2^-126 cannot show in a score.
  bool below_the_top() const {
    return queries_.value() < 0x1p58f && keys_.value() < 0x1p58f && values_.value() < 0x1p126f;
  }
  // The matrix unit takes numbers below 2^-126 for zero, lower parts of values among them.
  bool above_the_bottom() const {
    const float most = values_.value();
    return most == 0.0f || most >= 0x1p-90f;
  }

  template <typename T>
  T* at(std::int64_t offset) const {
    return reinterpret_cast<T*>(scratch_ + offset);
  }
  float* scores(int turn, std::int64_t vector) const {
    return at<float>(memory_.scores[turn]) + vector * block_.count * 16;
  }
  std::uint16_t* weights(std::int64_t vector) const {
    return at<std::uint16_t>(memory_.weights) + vector * (block_.count / kStep) * kOperandSize;
  }
  std::uint16_t* queries(std::int64_t vector) const {
    return at<std::uint16_t>(memory_.queries) + vector * (memory_.padded / kStep) * kOperandSize;
  }
  // Of the group that begins at a query, `vector` being one of it.
  std::int64_t state_of(std::int64_t query, std::int64_t vector) const {
    return query / (kVectors * kTileRows) % kGroups * kVectors + vector;
  }
  float* sums(std::int64_t query, std::int64_t vector) const {
    return at<float>(memory_.sums) + state_of(query, vector) * memory_.padded * 16;
  }
  float* top(std::int64_t query, std::int64_t vector) const {
    return at<float>(memory_.tops) + state_of(query, vector) * 16;
  }
  float* total(std::int64_t query, std::int64_t vector) const {
    return at<float>(memory_.totals) + state_of(query, vector) * 16;
  }

  Rows rows(std::int64_t which, std::int64_t begin, std::int64_t end) const {
    const std::int64_t feature = (which * problem_.heads + call_.head) * problem_.head_size;
    const auto* qkv = static_cast<const char*>(problem_.qkv);
    return {qkv + feature * panels::kSlots * std::int64_t{sizeof(float)}, problem_.panel_stride,
            problem_.head_size, begin, end};
  }

  void split_all_keys() {
    const Rows keys = rows(1, begin_, end_);
    auto* to = at<std::uint16_t>(memory_.keys);
    for (std::int64_t k = 0; k < block_.count; k += kTileRows) {
      split_keys(keys, block_.first + k, memory_.padded, to, keys_);
      to += memory_.padded / kStep * kOperandSize;
    }
  }

  Group group(std::int64_t query, std::int64_t stop) const {
    const std::int64_t left = stop - query;
    return {query, left > kTileRows ? 2 : left > 0 ? 1 : 0};
  }

  // Queries [query, stop) and one block of keys.
  void attend_block(std::int64_t query, std::int64_t stop) {
    constexpr std::int64_t kStride = kVectors * kTileRows;
    split_all_keys();
    Group next = group(query, stop);
    do_at_once(splitter_of_queries(next));
    ValueSplitter values(rows(2, begin_, end_), block_.first, block_.count, memory_.padded,
                         at<std::uint16_t>(memory_.values), values_);
    Shares<ValueSplitter> beside_scores(values, works());
    score(next, 0, beside_scores);
    beside_scores.finish();
    __m512 largest[kVectors];
    do_at_once(looker_of(next, 0)).copy(largest);
    do_at_once(splitter_of_queries(group(query + kStride, stop)));
    for (int turn = 0; next.vectors != 0; turn = 1 - turn) {
      const Group now = next;
      next = group(now.query + kStride, stop);
      weigh(now, largest, next, turn);
      Looker looker = looker_of(next, 1 - turn);
      QuerySplitter splitter = splitter_of_queries(group(next.query + kStride, stop));
      Then<Looker, QuerySplitter> both(looker, splitter);
      Shares<Then<Looker, QuerySplitter>> beside_values(both, works());
      add_values(now, beside_values);
      beside_values.finish();
      looker.copy(largest);
      if (block_.ends) finish(now);
    }
  }

  // Scores of `now` become weights, while those of `next` are multiplied.
  void weigh(const Group& now, const __m512 (&largest)[kVectors], const Group& next, int turn) {
    Weigher weigher = weigher_of(now, largest, turn);
    float* const lines[kVectors] = {out(now, 0), out(now, now.vectors - 1)};
    Fetcher fetcher(lines, block_.ends ? problem_.head_size : 0);
    Then<Weigher, Fetcher> both(weigher, fetcher);
    Shares<Then<Weigher, Fetcher>> beside_scores(both, works());
    if (next.vectors != 0) score(next, 1 - turn, beside_scores);
    beside_scores.finish();
    for (std::int64_t v = 0; v < now.vectors; ++v) {
      _mm512_store_ps(total(now.query, v), weigher.total(v));
    }
  }

  // Calls for work during score(), and during add_values().
  std::int64_t works() const { return block_.count / kStep * (memory_.padded / kStep) * kWorks; }

  template <typename Chore>
  static Chore do_at_once(Chore chore) {
    while (!chore.done()) chore.step();
    return chore;
  }

  QuerySplitter splitter_of_queries(const Group& group) {
    return {rows(0, from_, to_), group.query, group.vectors, memory_.padded, queries(0), queries_};
  }

  Looker looker_of(const Group& group, int turn) const {
    const std::int64_t own = begin_ > block_.first ? begin_ - block_.first : 0;
    const std::int64_t left = end_ - block_.first;
    const std::int64_t own_end = left < block_.count ? left : block_.count;
    Bias bias[kVectors] = {};
    for (std::int64_t v = 0; v < group.vectors && problem_.bias != nullptr; ++v) {
      const std::int64_t query = group.query + v * kTileRows;
      const std::int64_t key = block_.first + own;
      const std::int64_t row = call_.head * problem_.span + call_.bias_start + (key - begin_);
      bias[v] = {problem_.bias + row * problem_.span + call_.bias_start + (query - begin_),
                 problem_.span, rows(0, from_, to_).lanes(query)};
    }
    float* const of[kVectors] = {scores(turn, 0), scores(turn, 1)};
    return {of, group.vectors, block_.count, own, own_end, scale(), bias};
  }

  __m512 scale() const { return _mm512_set1_ps(problem_.scale * kLog2E); }

  // Fades earlier sums where there is a larger score now.
  Weigher weigher_of(const Group& group, const __m512 (&largest)[kVectors], int turn) const {
    const __m512 factor = problem_.bias == nullptr ? scale() : _mm512_set1_ps(1.0f);
    Weighed vectors[kVectors] = {};
    for (std::int64_t v = 0; v < group.vectors; ++v) {
      __m512 now = _mm512_mul_ps(largest[v], factor), so_far = _mm512_setzero_ps();
      if (!block_.begins) {
        const __m512 before = _mm512_load_ps(top(group.query, v));
        now = _mm512_max_ps(now, before);
        const __m512 fade = power_of_two(_mm512_sub_ps(before, now));
        so_far = _mm512_mul_ps(_mm512_load_ps(total(group.query, v)), fade);
        float* sum = sums(group.query, v);
        for (std::int64_t d = 0; d < memory_.padded * 16; d += 16) {
          _mm512_store_ps(sum + d, _mm512_mul_ps(_mm512_load_ps(sum + d), fade));
        }
      }
      _mm512_store_ps(top(group.query, v), now);
      vectors[v] = {scores(turn, v), weights(v), now, so_far};
    }
    return {vectors, block_.count, group.vectors, factor};
  }

  template <typename Work>
  SIMD_INLINE void score(const Group& group, int turn, Work& work) const {
    settle();
    if (group.vectors == 2) {
      score_keys<true>(turn, work);
    } else {
      score_keys<false>(turn, work);
    }
  }

  template <bool kWide, typename Work>
  SIMD_INLINE void score_keys(int turn, Work& work) const {
    const std::int64_t row = memory_.padded / kStep * kOperandSize;
    const std::uint16_t* keys = at<std::uint16_t>(memory_.keys);
    float *low = scores(turn, 0), *high = scores(turn, 1);
    const auto factors = [&](std::int64_t d) {
      return Factors{{keys + d, keys + row + d}, {queries(0) + d, queries(1) + d}};
    };
    load_first<kWide>(factors(0));
    for (std::int64_t k = 0; k < block_.count * 16; k += kStep * 16) {
      clear_sums();
      for (std::int64_t d = 0; d < row - kOperandSize; d += kOperandSize) {
        multiply<kWide>(factors(d), factors(d + kOperandSize), work);
      }
      const Factors last = factors(row - kOperandSize);
      keys += 2 * row;  // at the end beyond them, where values are
      multiply<kWide>(last, factors(0), work);
      store_sums<kWide>(low + k, high + k);
    }
  }

  template <typename Work>
  SIMD_INLINE void add_values(const Group& group, Work& work) const {
    settle();
    for (std::int64_t d = 0; d < memory_.padded; d += kStep) {
      if (group.vectors == 2) {
        add_features<true>(group, d, work);
      } else {
        add_features<false>(group, d, work);
      }
    }
    settle();
  }

  // Of 32 features.
  template <bool kWide, typename Work>
  SIMD_INLINE void add_features(const Group& group, std::int64_t feature, Work& work) const {
    float* low = sums(group.query, 0) + feature * 16;
    float* high = sums(group.query, 1) + feature * 16;
    if (block_.begins) {
      clear_sums();
    } else {
      load_sums<kWide>(low, high);
    }
    const std::int64_t row = memory_.padded / kTileRows * kOperandSize;
    const std::uint16_t* values =
        at<std::uint16_t>(memory_.values) + feature / kTileRows * kOperandSize;
    const auto factors = [&](std::int64_t step) {  // at the end beyond both, within the scratch
      const std::uint16_t *v = values + step * row, *p = step * kOperandSize + weights(0);
      return Factors{{v, v + kOperandSize}, {p, p + (weights(1) - weights(0))}};
    };
    load_first<kWide>(factors(0));
    for (std::int64_t step = 0; step < block_.count / kStep; ++step) {
      multiply<kWide>(factors(step), factors(step + 1), work);
    }
    store_sums<kWide>(low, high);
  }

  void finish(const Group& group) const {
    for (std::int64_t v = 0; v < group.vectors; ++v) {
      const std::int64_t query = group.query + v * kTileRows;
      const __m512 inverse =
          _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(total(group.query, v)));
      const __mmask16 lanes = rows(0, from_, to_).lanes(query);
      const float* sum = sums(group.query, v);
      float* to = out(group, v);
      for (std::int64_t d = 0; d < problem_.head_size; ++d) {
        const __m512 of = _mm512_mul_ps(_mm512_load_ps(sum + d * 16), inverse);
        _mm512_mask_storeu_ps(to + d * panels::kSlots, lanes, of);
      }
    }
  }

  float* out(const Group& group, std::int64_t vector) const {
    const std::int64_t query = group.query + vector * kTileRows;
    return problem_.out + query / panels::kSlots * problem_.out_stride +
           call_.head * problem_.head_size * panels::kSlots + query % panels::kSlots;
  }

  const Problem& problem_;
  const Call& call_;
  const Memory memory_;
  char* const scratch_;
  const std::int64_t begin_;  // tokens of the sequence
  const std::int64_t end_;
  const std::int64_t from_;  // tokens of the call's queries
  const std::int64_t to_;
  const std::int64_t first_;
  Block block_ = {};
  Magnitude queries_;
  Magnitude keys_;
  Magnitude values_;
};

bool attend(const Problem& problem, const Call& call) {
  // Above 1, what is lost of a score could show.
  if (!(problem.scale > 0.0f && problem.scale <= 1.0f)) return false;
  _tile_loadconfig(&kConfig);
  const bool valid = Attention(problem, call).run();
  _tile_release();
  return valid;
}

}  // namespace

extern const Kernels kAmxKernels;
const Kernels kAmxKernels = {attend};

}  // namespace sparse_runtime::split_attention
