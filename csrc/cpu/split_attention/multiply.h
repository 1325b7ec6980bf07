// Products of operands on AMX tiles. To be included within the unit's anonymous namespace, after
// panel_attention/tiles.h.

SIMD_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Sums of two vectors of queries: [32][16] each.
template <bool kWide>
SIMD_INLINE void load_sums(const float* low, const float* high) {
  _tile_loadd(0, low, 64);
  _tile_loadd(1, low + kTileRows * 16, 64);
  if (kWide) _tile_loadd(2, high, 64);
  if (kWide) _tile_loadd(3, high + kTileRows * 16, 64);
}

template <bool kWide>
SIMD_INLINE void store_sums(float* low, float* high) {
  _tile_stored(0, low, 64);
  _tile_stored(1, low + kTileRows * 16, 64);
  if (kWide) _tile_stored(2, high, 64);
  if (kWide) _tile_stored(3, high + kTileRows * 16, 64);
}

// Two operands side by side.
struct Two {
  const std::uint16_t* first;
  const std::uint16_t* second;
};

// What is multiplied: tiles 4 and 5 are of the left, 6 and 7 (if kWide) of the right.
struct Factors {
  Two left;
  Two right;
};

template <bool kWide>
SIMD_INLINE void load_first(const Factors& of) {
  _tile_loadd(4, of.left.first, 64);
  _tile_loadd(5, of.left.second, 64);
  _tile_loadd(6, of.right.first + 2 * kTileSize, 64);
  if (kWide) _tile_loadd(7, of.right.second + 2 * kTileSize, 64);
}

// Tiles 0 and 1 (first of the right), 2 and 3 (second) += left x right. Then one side is another.
template <bool kWide, typename Work>
SIMD_INLINE void multiply_then_right(const Two& right, int part, Work& work) {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 5, 6);
  _tile_loadd(6, right.first + part * kTileSize, 64);
  work();
  if (kWide) {
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(7, right.second + part * kTileSize, 64);
  }
  work();
}

template <bool kWide, typename Work>
SIMD_INLINE void multiply_then_left(const Two& left, int part, Work& work) {
  _tile_dpbf16ps(0, 4, 6);
  if (kWide) _tile_dpbf16ps(2, 4, 7);
  _tile_loadd(4, left.first + part * kTileSize, 64);
  work();
  _tile_dpbf16ps(1, 5, 6);
  if (kWide) _tile_dpbf16ps(3, 5, 7);
  _tile_loadd(5, left.second + part * kTileSize, 64);
  work();
}

// All six products, in an order that changes one side at a time and ends with the largest. Tiles
// are loaded as soon as they are free, before the work that goes on beside.
template <bool kWide, typename Work>
SIMD_INLINE void multiply(const Factors& now, const Factors& next, Work& work) {
  multiply_then_right<kWide>(now.right, 1, work);   // 0 2
  multiply_then_left<kWide>(now.left, 1, work);     // 0 1
  multiply_then_right<kWide>(now.right, 0, work);   // 1 1
  multiply_then_left<kWide>(now.left, 2, work);     // 1 0
  multiply_then_left<kWide>(now.left, 0, work);     // 2 0
  multiply_then_right<kWide>(next.right, 2, work);  // 0 0
  _tile_loadd(4, next.left.first, 64);
  _tile_loadd(5, next.left.second, 64);
}
constexpr std::int64_t kWorks = 12;  // calls of work()
