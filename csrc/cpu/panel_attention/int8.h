// Attention in static INT8 over vectors of any width; each instruction set's unit includes this
// file within its anonymous namespace, after attend.h.
//
// Both products are those of a dense INT8 linear: keys, and then the features of the values, are
// its rows, the queries its tokens. The tokens' side is stored unsigned and the rows' side signed,
// offset by 128 where the quantizer has it otherwise. Keys are counted from the vector that holds
// the sequence's first one, so that every load is a whole vector of one panel.

#include "cpu/panel_attention/int8_operands.h"

class Int8Attention {
 public:
  Int8Attention(const Problem& problem, const Call& call, const Head& head)
      : problem_(problem),
        call_(call),
        head_(head),
        memory_(head.head_size),
        first_token_(call.start / panels::kVector * panels::kVector),
        keys_(call.start - first_token_ + call.length),
        one_block_(keys_ <= kInt8KeyBlock),
        weight_zero_(problem.quantizers->probabilities.zero_point +
                     unsigned_offset(problem.quantizers->probabilities)) {}

  void run() {
    if (one_block_) pack(block(0));
    std::int64_t token = call_.start + call_.query;
    const std::int64_t end = token + call_.queries;
    Queries q;
    while (token < end) {
      q.panel = head_.panel_of(token);
      const auto first = static_cast<int>(head_.slot_of(token));
      const std::int64_t left = end - q.panel * head_.filled();
      const auto last = static_cast<int>(left < head_.filled() ? left : head_.filled());
      q.slot = first / panels::kVector * panels::kVector;
      q.vectors = (last - q.slot + panels::kVector - 1) / panels::kVector;
      q.lanes = {first - q.slot, last - q.slot};
      attend(q);
      token = q.panel * head_.filled() + last;
    }
  }

 private:
  template <typename Element>
  Element* at(std::int64_t offset) const {
    return reinterpret_cast<Element*>(static_cast<char*>(call_.scratch) + offset);
  }

  KeyBlock block(std::int64_t first_key) const {
    const std::int64_t left = keys_ - first_key;
    return {first_token_ + first_key, first_key == 0 ? call_.start - first_token_ : 0,
            left < kInt8KeyBlock ? left : kInt8KeyBlock};
  }

  // Probabilities are rounded to levels after they have been divided by their true sum, so keys
  // beyond one block are gone through twice.
  void attend(Queries& q) {
    pack_queries(q);
    for (int slot = 0; slot < kPanelSlots; ++slot) {
      q.top[slot] = -3.0e38f;
      q.total[slot] = 0.0f;
      q.weight_sums[slot] = 0;
    }
    for (std::int64_t key = 0; key < keys_; key += kInt8KeyBlock) {
      const KeyBlock own = block(key);
      if (!one_block_) pack_keys(own);
      scores(q, own);
    }
    float inverse[kPanelSlots];
    for (int slot = 0; slot < kPanelSlots; ++slot) {
      inverse[slot] = 1.0f / (q.total[slot] * problem_.quantizers->probabilities.scale);
    }
    if (!one_block_) clear_sums();
    for (std::int64_t key = 0; key < keys_; key += kInt8KeyBlock) {
      const KeyBlock own = block(key);
      if (!one_block_) {
        pack(own);
        scores(q, own);
      }
      weigh(q, own, inverse);
      multiply(at<const std::int8_t>(memory_.values), memory_.value_rows, own.groups(),
               at<const std::uint8_t>(memory_.weights), q.vectors,
               at<std::int32_t>(memory_.context));
      if (!one_block_) add_sums();
    }
    leave(q);
  }

  void clear_sums() const {
    auto* sums = at<std::int32_t>(memory_.sums);
    for (std::int64_t i = 0; i < head_.head_size * kPanelSlots; i += kLanes) store(sums + i, I{});
    auto* value_sums = at<std::int32_t>(memory_.value_sums);
    for (std::int64_t d = 0; d < head_.head_size; ++d) value_sums[d] = 0;
  }

  void add_sums() const {
    const auto* from = at<const std::int32_t>(memory_.context);
    auto* to = at<std::int32_t>(memory_.sums);
    for (std::int64_t i = 0; i < head_.head_size * kPanelSlots; i += kLanes) {
      store(to + i, load<U>(to + i) + load<U>(from + i));
    }
  }

  // acc[row][slot] = sum over groups of four of rows[row] * x[slot].
  void multiply(const std::int8_t* rows, std::int64_t count, std::int64_t groups,
                const std::uint8_t* x, int vectors, std::int32_t* acc) const {
    auto* starts = at<std::int32_t>(memory_.starts);
    for (std::int64_t band = 0; band <= count / 4; ++band) {
      starts[band] = static_cast<std::int32_t>(band * groups);
    }
    int8_panels::WeightView view = {};
    view.layout = int8_panels::Layout::kDense;
    view.n = count;
    view.k = 4 * groups;
    view.values = rows;
    view.starts = starts;
    problem_.accumulate(
        view, {0, count, x, 4 * groups * kPanelSlots, 1, vectors, acc, at<void>(memory_.kernel)});
  }

  // Four features of a token make one word. Returns the sum of all.
  template <typename Put>
  SIMD_INLINE I words(const Levels& given, std::int64_t row, std::int64_t token,
                      const Put& put) const {
    const Levels levels = given;
    const float* x = head_.floats(row, token);
    const std::int64_t size = head_.head_size;
    I sum = {};
    std::int64_t d = 0;
    for (; d + 4 <= size; d += 4, x += 4 * kPanelSlots) {
      I value[4];
      UNROLL
      for (int i = 0; i < 4; ++i) value[i] = quantized(levels, load<F>(x + i * kPanelSlots));
      sum += value[0] + value[1] + value[2] + value[3];
      put(d / 4, word_of(value));
    }
    if (d < size) {
      I value[4] = {};
      for (int i = 0; d + i < size; ++i) {
        value[i] = quantized(levels, load<F>(x + i * kPanelSlots));
        sum += value[i];
      }
      put(d / 4, word_of(value));
    }
    return sum;
  }

  void pack_queries(Queries& q) const {
    const Levels levels = unsigned_levels(problem_.quantizers->query);
    const I key_zero = signed_levels(problem_.quantizers->key).zero;
    const I both = static_cast<int>(head_.head_size) * levels.zero * key_zero;
    auto* to = at<std::uint8_t>(memory_.queries);
    for (int slot = 0; slot < q.vectors * panels::kVector; slot += kLanes) {
      const I sum = words(
          levels, head_.query_row, q.panel * head_.filled() + q.slot + slot,
          [&](std::int64_t group, U word) { store(to + (group * kPanelSlots + slot) * 4, word); });
      store(q.terms + slot, sum * key_zero - both);
    }
  }

  void pack(const KeyBlock& block) const {
    pack_keys(block);
    pack_values(block);
  }

  void pack_keys(const KeyBlock& block) const {
    const Levels levels = signed_levels(problem_.quantizers->key);
    const I query_zero = unsigned_levels(problem_.quantizers->query).zero;
    auto* keys = at<std::int8_t>(memory_.keys);
    const std::int64_t band_bytes = memory_.groups * 16;
    for (std::int64_t key = 0; key < block.loaded(); key += kLanes) {
      const I sum =
          words(levels, head_.key_row, block.token + key, [&](std::int64_t group, U word) {
            std::uint32_t lanes[kLanes];
            store(lanes, word);
            std::int8_t* to = keys + key / 4 * band_bytes + group * 16;
            for (int lane = 0; lane < kLanes; lane += 4, to += band_bytes) {
              __builtin_memcpy(to, lanes + lane, 16);
            }
          });
      store(at<std::int32_t>(memory_.key_terms) + key, sum * query_zero);
    }
    // Rows up to a whole block are multiplied, and not read.
    __builtin_memset(keys + block.loaded() / 4 * band_bytes, 0,
                     static_cast<std::size_t>((block.rows() - block.loaded()) / 4 * band_bytes));
  }

  void pack_values(const KeyBlock& block) const {
    const Levels levels = signed_levels(problem_.quantizers->value);
    auto* values = at<std::int8_t>(memory_.values);
    const std::int64_t row_bytes = block.groups() * 16;  // of four features
    for (std::int64_t key = 0; key < block.loaded(); key += kLanes) {
      std::int8_t* to = values + key * 4;
      words(levels, head_.value_row, block.token + key,
            [&](std::int64_t group, U word) { store(to + group * row_bytes, by_feature(word)); });
    }
    // Features up to a whole block are multiplied, and not read.
    __builtin_memset(
        values + memory_.groups * row_bytes, 0,
        static_cast<std::size_t>((memory_.value_rows / 4 - memory_.groups) * row_bytes));
    if (weight_zero_ != 0) add_values(block);
  }

  void add_values(const KeyBlock& block) const {
    const auto* values = at<const std::int8_t>(memory_.values);
    auto* sums = at<std::int32_t>(memory_.value_sums);
    for (std::int64_t d = 0; d < head_.head_size; ++d) {
      const std::int8_t* row = values + d / 4 * block.groups() * 16 + d % 4 * 4;
      std::int32_t total = one_block_ ? 0 : sums[d];
      for (std::int64_t key = block.begin; key < block.end; ++key) {
        total += row[key / 4 * 16 + key % 4];
      }
      sums[d] = total;
    }
  }

  // Leaves exponentials of the scores less the largest so far, and adds them to the totals.
  void scores(Queries& q, const KeyBlock& block) const {
    multiply(at<const std::int8_t>(memory_.keys), block.rows(), memory_.groups,
             at<const std::uint8_t>(memory_.queries), q.vectors, at<std::int32_t>(memory_.scores));
    over_queries(
        q, [&](auto groups, int slot) { dequantize<decltype(groups)::value>(q, block, slot); });
    over_queries(
        q, [&](auto groups, int slot) { exponentials<decltype(groups)::value>(q, block, slot); });
  }

  template <int kValue>
  struct Groups {
    static constexpr int value = kValue;
  };

  // Several lane groups side by side where there are as many, so that rows are read whole.
  template <typename Step>
  static SIMD_INLINE void over_queries(const Queries& q, const Step& step) {
    const int end = q.vectors * panels::kVector;
    int slot = 0;
    for (; slot + 4 * kLanes <= end; slot += 4 * kLanes) step(Groups<4>(), slot);
    for (; slot < end; slot += kLanes) step(Groups<1>(), slot);
  }

  template <int kGroups>
  void dequantize(Queries& q, const KeyBlock& block, int slot) const {
    const Quantizers& quantizers = *problem_.quantizers;
    const F left = splat(quantizers.query.scale), right = splat(quantizers.key.scale);
    const F scale = splat(problem_.scale);
    const bool leveled = quantizers.scores.scale != 0.0f;
    const Grid grid = levels_of(quantizers.scores, 0).grid;
    const auto* key_terms = at<const std::int32_t>(memory_.key_terms);
    auto* rows = at<float>(memory_.scores) + slot;
    const float* bias = bias_at(q, block, slot);
    U terms[kGroups];
    F top[kGroups], before[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      terms[g] = load<U>(q.terms + slot + g * kLanes);
      top[g] = before[g] = load<F>(q.top + slot + g * kLanes);
    }
    for (std::int64_t key = block.begin; key < block.end; ++key) {
      float* row = rows + key * kPanelSlots;
      const auto key_term = static_cast<std::uint32_t>(key_terms[key]);
      for (int g = 0; g < kGroups; ++g) {
        const U sum = load<U>(row + g * kLanes) - terms[g] - key_term;
        F v = to_float((I)sum) * left * right;
        if (leveled) v = requantized(grid, v);
        v = v * scale;
        if (bias != nullptr) {
          const int from = q.lanes.first - slot - g * kLanes, to = q.lanes.end - slot - g * kLanes;
          v = v + load_lanes(bias + key * problem_.span + g * kLanes, from < 0 ? 0 : from,
                             to > kLanes ? kLanes : to);
        }
        store(row + g * kLanes, v);
        top[g] = most(v, top[g]);
      }
    }
    for (int g = 0; g < kGroups; ++g) {
      const int lane = slot + g * kLanes;
      store(q.top + lane, top[g]);
      store(q.total + lane, load<F>(q.total + lane) * exponential(before[g] - top[g]));
    }
  }

  // Of key 0 and the query of `slot`, which may both lie before those that are read.
  const float* bias_at(const Queries& q, const KeyBlock& block, int slot) const {
    if (problem_.bias == nullptr) return nullptr;
    const std::int64_t own = call_.bias_start - call_.start;
    return problem_.bias + (call_.head * problem_.span + block.token + own) * problem_.span +
           q.panel * head_.filled() + q.slot + slot + own;
  }

  template <int kGroups>
  void exponentials(Queries& q, const KeyBlock& block, int slot) const {
    auto* rows = at<float>(memory_.scores) + slot;
    const bool biased = problem_.bias != nullptr;  // else all scores are finite
    F top[kGroups], total[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      top[g] = load<F>(q.top + slot + g * kLanes);
      total[g] = load<F>(q.total + slot + g * kLanes);
    }
    for (std::int64_t key = block.begin; key < block.end; ++key) {
      float* row = rows + key * kPanelSlots;
      for (int g = 0; g < kGroups; ++g) {
        const F shifted = load<F>(row + g * kLanes) - top[g];
        F p = exponential(shifted);
        if (biased) p = shifted == shifted ? p : shifted;  // NaN stays
        store(row + g * kLanes, p);
        total[g] = total[g] + p;
      }
    }
    for (int g = 0; g < kGroups; ++g) store(q.total + slot + g * kLanes, total[g]);
  }

  // Exponentials of four keys become one word of probabilities. NaN becomes the level of 0.
  void weigh(Queries& q, const KeyBlock& block, const float* inverse) const {
    const Levels levels = unsigned_levels(problem_.quantizers->probabilities);
    auto* weights = at<std::uint8_t>(memory_.weights);
    for (int slot = 0; slot < q.vectors * panels::kVector; slot += kLanes) {
      const auto* column = at<const float>(memory_.scores) + slot;
      const F factor = load<F>(inverse + slot);
      const auto weight = [&](std::int64_t key) __attribute__((always_inline)) {
        const F p = load<F>(column + key * kPanelSlots) * factor;
        return (U)(to_nearest(least(most(p, F{}), levels.grid.high)) + levels.zero);
      };
      U sum = load<U>(q.weight_sums + slot);
      for (std::int64_t group = 0; group < block.groups(); ++group) {
        const std::int64_t key = 4 * group;
        U part[4] = {};
        if (key >= block.begin && key + 4 <= block.end) {
          for (int i = 0; i < 4; ++i) part[i] = weight(key + i);
        } else {
          for (int i = 0; i < 4; ++i) part[i] = block.owns(key + i) ? weight(key + i) : U{};
        }
        sum += part[0] + part[1] + part[2] + part[3];
        const U word = part[0] | part[1] << 8 | part[2] << 16 | part[3] << 24;
        store(weights + (group * kPanelSlots + slot) * 4, word);
      }
      store(q.weight_sums + slot, sum);
    }
  }

  void leave(const Queries& q) const {
    const Quantizers& quantizers = *problem_.quantizers;
    const F left = splat(quantizers.probabilities.scale), right = splat(quantizers.value.scale);
    const auto weight_zero = static_cast<std::uint32_t>(weight_zero_);
    const U value_zero = (U)signed_levels(quantizers.value).zero;
    const bool leveled = quantizers.context.scale != 0.0f;
    const Grid grid = levels_of(quantizers.context, 0).grid;
    const auto* sums = at<const std::int32_t>(one_block_ ? memory_.context : memory_.sums);
    const auto* value_sums = at<const std::int32_t>(memory_.value_sums);
    float* out = problem_.out + q.panel * problem_.out_stride + head_.query_row * kPanelSlots;
    for (int slot = 0; slot < q.vectors * panels::kVector; slot += kLanes) {
      const std::uint32_t own = static_cast<std::uint32_t>(call_.length) * weight_zero;
      const U terms = (load<U>(q.weight_sums + slot) - own) * value_zero;
      const int first = q.lanes.first - slot, end = q.lanes.end - slot;
      for (std::int64_t d = 0; d < head_.head_size; ++d) {
        U sum = load<U>(sums + d * kPanelSlots + slot) - terms;
        if (weight_zero != 0) sum -= weight_zero * static_cast<std::uint32_t>(value_sums[d]);
        F v = to_float((I)sum) * left * right;
        if (leveled) v = requantized(grid, v);
        float* to = out + d * kPanelSlots + q.slot + slot;
        if (first <= 0 && end >= kLanes) {
          store(to, v);
          continue;
        }
        // The other lanes are other sequences', maybe another thread's.
        for (int lane = first < 0 ? 0 : first; lane < (end < kLanes ? end : kLanes); ++lane) {
          to[lane] = v[lane];
        }
      }
    }
  }

  const Problem& problem_;
  const Call& call_;
  const Head& head_;
  const Int8Memory memory_;
  const std::int64_t first_token_;  // of key 0
  const std::int64_t keys_;         // from it on
  const bool one_block_;
  const int weight_zero_;  // as stored
};

void attend_int8(const Problem& problem, const Call& call) {
  Int8Attention(problem, call, head_of(problem, call)).run();
}
