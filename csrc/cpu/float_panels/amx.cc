// AMX tiles of bf16 weights.
#include "core/panels.h"
#include "cpu/float_panels/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::float_panels {
namespace {

using Sum = float;
#define TILE_PRODUCT(sums, weights, inputs) _tile_dpbf16ps(sums, weights, inputs)
#include "cpu/float_panels/amx_tiles.h"

Strip strip_of(const WeightView& w, std::int64_t row) {
  const std::int64_t s = row / kTileRows;
  const std::int64_t first = w.starts[s];
  return {reinterpret_cast<const char*>(w.halves) + first * kTileBytes, w.index + first,
          w.starts[s + 1] - first};
}

void tiles(const WeightView& w, const Call& call) {
  _tile_loadconfig(&kConfig);
  for (std::int64_t r = 0; r < call.rows; r += kRowBlock) {
    multiply_panels(strip_of(w, call.row + r), strip_of(w, call.row + r + kTileRows), call, r,
                    true);
  }
  _tile_release();
}

// Tiles as they come in a model: the unit is faster on equal numbers.
std::int64_t peak16(std::int64_t rounds) {
  alignas(64) std::uint16_t halves[4][kTileBytes / 2];
  std::uint32_t state = 1;
  for (auto& tile : halves) {
    for (std::uint16_t& half : tile) {
      state = state * 1664525u + 1013904223u;
      half = static_cast<std::uint16_t>((state >> 16 & 0x83ffu) | 0x3c00u);
    }
  }
  // The tile instructions say nothing of the memory they read.
  asm volatile("" ::"r"(halves) : "memory");
  _tile_loadconfig(&kConfig);
  _tile_loadd(4, halves[0], kRowBytes);
  _tile_loadd(5, halves[1], kRowBytes);
  _tile_loadd(6, halves[2], kRowBytes);
  _tile_loadd(7, halves[3], kRowBytes);
  clear<2>();
  for (std::int64_t round = 0; round < rounds; ++round) {
    multiply_top<2>();
    multiply_bottom<2>();
  }
  _tile_release();
  return rounds * (4 * 2 * 16 * 16 * 32);
}

}  // namespace

extern const Kernels kAmxKernels;
const Kernels kAmxKernels = {{nullptr, nullptr, nullptr, tiles}, nullptr, peak16};

}  // namespace sparse_runtime::float_panels
