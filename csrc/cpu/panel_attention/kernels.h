// Self-attention over panels: what one instruction set supplies. Plain declarations only.
//
// Queries lie in the lanes: scores[key][query] = sum_d K[d][key] * Q[d][query]; the softmax runs
// down the keys, lane by lane; out[d][query] = sum_key V[d][key] * P[key][query].
#pragma once

#include <cstdint>

#include "cpu/int8_panels/kernels.h"

namespace sparse_runtime::panel_attention {

// Forms of the queries, keys and values, which lie side by side: features [0, H) are the queries,
// [H, 2H) the keys, [2H, 3H) the values, H = heads * head_size, head_size even.
//   kFloat  float [panel][3H][64]
//   kBf16   bf16: queries and keys as pairs [H][64 slots][2] (feature f at f / 2), then the values
//           as halves [H][64]: feature f of either begins f * 64 (pairs: (f / 2) * 128) elements
//           into the panel
//   kInt8   as kFloat; quantized within the call, and both products are sums of integers
enum class Form { kFloat, kBf16, kInt8 };

// Keys are taken in blocks of at most this many, so that memory is bounded for any length.
constexpr std::int64_t kKeyBlock = 512;

// Static quantization: q = clamp(round_even(x / scale) + zero_point, low, high). scale 0: none.
struct Quantizer {
  float scale;
  int zero_point;
  int low;  // -128 at least; 255 steps at most to high
  int high;
};

// With x^ = (q - zero_point) * scale of each: scores = query^ key^, rounded to the levels of
// `scores`, times Problem::scale; context = probabilities^ value^, rounded to those of `context`.
struct Quantizers {
  Quantizer query;
  Quantizer key;
  Quantizer probabilities;
  Quantizer value;
  Quantizer scores;   // may be none
  Quantizer context;  // may be none
};

// 255 * 255 times as many keys, or features of a head, stays below 2^31.
constexpr std::int64_t kMostInt8Terms = 33025;

struct Problem {
  const void* qkv;            // first panel of the stream, 64-byte aligned
  std::int64_t panel_stride;  // bytes
  std::int64_t filled;        // slots of a panel that hold tokens: 16, 32 or 64; AMX kernels: 64
  std::int64_t heads;
  std::int64_t head_size;
  float scale;        // multiplies the scores
  const float* bias;  // added to the scaled scores, or null: [heads][span keys][span queries]
  std::int64_t span;
  float* out;  // floats [panel][H][64]: only the slots of the call's queries are written
  std::int64_t out_stride;  // floats between panels
  // kInt8 only.
  const Quantizers* quantizers;
  int8_panels::Accumulate accumulate;  // of the dense layout
};

// One head of one sequence, for some of its queries.
struct Call {
  std::int64_t head;
  std::int64_t start;       // the sequence's first token in the stream
  std::int64_t length;      // its tokens
  std::int64_t bias_start;  // its first token's row and column in bias
  std::int64_t query;       // first query, counted from start
  std::int64_t queries;
  void* scratch;  // scratch_bytes() of panel_attention.h, 64-byte aligned, this thread's own
};

struct Kernels {
  void (*attend_float)(const Problem& problem, const Call& call);
  void (*attend_bf16)(const Problem& problem, const Call& call);  // null where there is none
  void (*attend_int8)(const Problem& problem, const Call& call);  // the same
};

extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
extern const Kernels kAmxKernels;

}  // namespace sparse_runtime::panel_attention
