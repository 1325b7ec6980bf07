// Where one head of one sequence lies. To be included within the unit's anonymous namespace, after
// cpu/simd.h.
#pragma once

constexpr int kPanelSlots = panels::kSlots;

struct Head {
  const char* qkv;
  std::int64_t panel_stride;
  int shift;               // of tokens to panels
  std::int64_t query_row;  // feature of the first query, key and value
  std::int64_t key_row;
  std::int64_t value_row;
  std::int64_t head_size;

  std::int64_t filled() const { return std::int64_t{1} << shift; }
  std::int64_t panel_of(std::int64_t token) const { return token >> shift; }
  std::int64_t slot_of(std::int64_t token) const { return token & (filled() - 1); }
  // size: bytes of a slot in a row of the form.
  const char* at(std::int64_t row, std::int64_t token, std::int64_t size) const {
    return qkv + panel_of(token) * panel_stride + (row * kPanelSlots + slot_of(token)) * size;
  }
  const float* floats(std::int64_t row, std::int64_t token) const {
    return reinterpret_cast<const float*>(at(row, token, 4));
  }
  const char* pairs(std::int64_t row, std::int64_t token) const { return at(row / 2, token, 4); }
  const char* halves(std::int64_t row, std::int64_t token) const { return at(row, token, 2); }
};

SIMD_INLINE Head head_of(const Problem& problem, const Call& call) {
  const std::int64_t all = problem.heads * problem.head_size;
  const std::int64_t row = call.head * problem.head_size;
  return {static_cast<const char*>(problem.qkv),
          problem.panel_stride,
          __builtin_ctzll(problem.filled),
          row,
          all + row,
          2 * all + row,
          problem.head_size};
}
