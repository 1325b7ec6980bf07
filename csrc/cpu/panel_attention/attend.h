// Attention in float32 over vectors of any width; each instruction set's unit includes this file
// within its anonymous namespace, after cpu/simd.h.

#include "cpu/panel_attention/head.h"

// Keys, then output features, whose sums are in registers at a time: of 32 vectors, or of 16.
constexpr int kRows = kLanes == 16 ? 6 : 4;

// scores[key][query] of kRows keys (the same one again where there are fewer) and kGroups lane
// groups of queries.
template <int kGroups>
SIMD_INLINE void score(const Head& head, const float* queries, const float* const (&keys)[kRows],
                       F (&sums)[kRows][kGroups]) {
  for (std::int64_t d = 0; d < head.head_size; ++d) {
    F q[kGroups];
    UNROLL for (int g = 0; g < kGroups; ++g) q[g] = load<F>(queries + d * kPanelSlots + g * kLanes);
    UNROLL for (int r = 0; r < kRows; ++r) {
      const F k = splat(keys[r][d * kPanelSlots]);
      UNROLL for (int g = 0; g < kGroups; ++g) sums[r][g] = fma(k, q[g], sums[r][g]);
    }
  }
}

struct Block {
  std::int64_t first;  // token of the first key
  std::int64_t count;
  const float* bias;  // [key][query], at the first key and the first lane's query; or null
  std::int64_t bias_stride;
};

// Lanes outside of the call's queries must not read beyond the bias.
SIMD_INLINE F load_lanes(const float* from, int first, int end) {
  F v = {};
  for (int lane = first; lane < end; ++lane) v[lane] = from[lane];
  return v;
}

struct Lanes {
  int first;  // those in use of the kGroups * kLanes
  int end;
};

// Not inlined, nor is add_values(): gcc would run out of registers for the sums.
template <int kGroups>
__attribute__((noinline)) void score_block(const Head& head, const float* queries,
                                           const Block& block, float scale, const Lanes& lanes,
                                           float* scores, F (&top)[kGroups]) {
  for (std::int64_t k = 0; k < block.count; k += kRows) {
    const int rows = static_cast<int>(block.count - k < kRows ? block.count - k : kRows);
    const float* keys[kRows];
    UNROLL for (int r = 0; r < kRows; ++r) {
      keys[r] = head.floats(head.key_row, block.first + k + (r < rows ? r : 0));
    }
    F sums[kRows][kGroups] = {};
    score<kGroups>(head, queries, keys, sums);
    UNROLL for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      UNROLL for (int g = 0; g < kGroups; ++g) {
        F v = sums[r][g] * scale;
        if (block.bias != nullptr) {
          const int from = lanes.first - g * kLanes, to = lanes.end - g * kLanes;
          v = v + load_lanes(block.bias + (k + r) * block.bias_stride + g * kLanes,
                             from < 0 ? 0 : from, to > kLanes ? kLanes : to);
        }
        store(scores + ((k + r) * kGroups + g) * kLanes, v);
        top[g] = most(v, top[g]);
      }
    }
  }
}

// out[d][query] = out * fade + sum over the block's keys of V[d][key] * P[key][query].
template <int kGroups>
__attribute__((noinline)) void add_values(const Head& head, const Block& block,
                                          const float* weights, const F (&fade)[kGroups],
                                          float* out) {
  for (std::int64_t d = 0; d < head.head_size; d += kRows) {
    const int rows = static_cast<int>(head.head_size - d < kRows ? head.head_size - d : kRows);
    F sums[kRows][kGroups];
    UNROLL for (int r = 0; r < kRows; ++r) {
      UNROLL for (int g = 0; g < kGroups; ++g) {
        sums[r][g] = r < rows ? load<F>(out + ((d + r) * kGroups + g) * kLanes) * fade[g] : F{};
      }
    }
    for (std::int64_t k = 0; k < block.count;) {
      // Up to the end of the panel, a feature's values lie side by side.
      const std::int64_t token = block.first + k;
      const std::int64_t left = head.filled() - head.slot_of(token);
      const std::int64_t stop = k + left < block.count ? k + left : block.count;
      const float* values[kRows];
      UNROLL for (int r = 0; r < kRows; ++r) {
        values[r] = head.floats(head.value_row + d + (r < rows ? r : 0), token) - k;
      }
      for (; k < stop; ++k) {
        F p[kGroups];
        UNROLL for (int g = 0; g < kGroups; ++g) {
          p[g] = load<F>(weights + (k * kGroups + g) * kLanes);
        }
        UNROLL for (int r = 0; r < kRows; ++r) {
          const F v = splat(values[r][k]);
          UNROLL for (int g = 0; g < kGroups; ++g) sums[r][g] = fma(v, p[g], sums[r][g]);
        }
      }
    }
    UNROLL for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      UNROLL for (int g = 0; g < kGroups; ++g) {
        store(out + ((d + r) * kGroups + g) * kLanes, sums[r][g]);
      }
    }
  }
}

// Queries of kGroups lane groups from `slot` of one panel on; keys block by block, with the sums so
// far faded where a later block has a larger score (Milakov and Gimelshein 2018).
template <int kGroups>
void attend_lanes(const Problem& problem, const Call& call, const Head& head, std::int64_t panel,
                  int slot, const Lanes& lanes) {
  auto* scores = static_cast<float*>(call.scratch);
  float* sums_of_values = scores + kKeyBlock * kPanelSlots;
  const float* queries = head.floats(head.query_row, panel * head.filled() + slot);
  F top[kGroups], total[kGroups];
  UNROLL for (int g = 0; g < kGroups; ++g) {
    top[g] = splat(-3.0e38f);
    total[g] = F{};
  }
  for (std::int64_t i = 0; i < head.head_size * kGroups; ++i) {
    store(sums_of_values + i * kLanes, F{});
  }
  for (std::int64_t done = 0; done < call.length; done += kKeyBlock) {
    const std::int64_t left = call.length - done;
    Block block = {call.start + done, left < kKeyBlock ? left : kKeyBlock, nullptr, problem.span};
    if (problem.bias != nullptr) {
      const std::int64_t first_query = panel * head.filled() + slot - call.start + call.bias_start;
      block.bias = problem.bias +
                   (call.head * problem.span + call.bias_start + done) * problem.span + first_query;
    }
    F before[kGroups], fade[kGroups];
    UNROLL for (int g = 0; g < kGroups; ++g) before[g] = top[g];
    score_block<kGroups>(head, queries, block, problem.scale, lanes, scores, top);
    UNROLL for (int g = 0; g < kGroups; ++g) {
      fade[g] = exponential(before[g] - top[g]);
      total[g] = total[g] * fade[g];
    }
    for (std::int64_t k = 0; k < block.count; ++k) {
      UNROLL for (int g = 0; g < kGroups; ++g) {
        float* at = scores + (k * kGroups + g) * kLanes;
        const F shifted = load<F>(at) - top[g];
        F p = exponential(shifted);
        p = shifted == shifted ? p : shifted;  // NaN stays
        store(at, p);
        total[g] = total[g] + p;
      }
    }
    add_values<kGroups>(head, block, scores, fade, sums_of_values);
  }
  float* out = problem.out + panel * problem.out_stride + (head.query_row * kPanelSlots + slot);
  for (std::int64_t d = 0; d < head.head_size; ++d) {
    for (int g = 0; g < kGroups; ++g) {
      const F v = load<F>(sums_of_values + (d * kGroups + g) * kLanes) / total[g];
      float* to = out + d * kPanelSlots + g * kLanes;
      const int from = lanes.first - g * kLanes, end = lanes.end - g * kLanes;
      if (from <= 0 && end >= kLanes) {
        store(to, v);
        continue;
      }
      // The other lanes are other sequences', maybe another thread's.
      for (int lane = from < 0 ? 0 : from; lane < (end < kLanes ? end : kLanes); ++lane) {
        to[lane] = v[lane];
      }
    }
  }
}

void attend_float(const Problem& problem, const Call& call) {
  const Head head = head_of(problem, call);
  std::int64_t token = call.start + call.query;
  const std::int64_t end = token + call.queries;
  while (token < end) {
    const std::int64_t panel = head.panel_of(token);
    const auto first = static_cast<int>(head.slot_of(token));
    const int slot = first / kLanes * kLanes;
    const std::int64_t left = end - panel * head.filled();
    const auto last = static_cast<int>(left < head.filled() ? left : head.filled());
    const int groups = (last - slot + kLanes - 1) / kLanes;
    const int taken = groups >= 4 ? 4 : groups;
    const int stop = slot + taken * kLanes < last ? slot + taken * kLanes : last;
    const Lanes lanes = {first - slot, stop - slot};
    switch (taken) {
      case 1:
        attend_lanes<1>(problem, call, head, panel, slot, lanes);
        break;
      case 2:
        attend_lanes<2>(problem, call, head, panel, slot, lanes);
        break;
      case 3:
        attend_lanes<3>(problem, call, head, panel, slot, lanes);
        break;
      default:
        attend_lanes<4>(problem, call, head, panel, slot, lanes);
        break;
    }
    token = panel * head.filled() + stop;
  }
}
