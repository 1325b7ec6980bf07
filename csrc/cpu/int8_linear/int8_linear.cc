// Tiling and threads of the family, written once for all instruction sets.
#include "cpu/int8_linear/int8_linear.h"

#include <algorithm>
#include <cstddef>

#include "core/int8_layout.h"
#include "core/thread_pool.h"

namespace sparse_runtime::int8_linear {
namespace {

namespace layout = int8_layout;

// Activations of one task: they stay in the L2 cache while the weights of a tile pass by.
constexpr std::int64_t kTaskActivationBytes = 256 * 1024;
constexpr std::int64_t kMaxTaskTokens = 192;
// Work below which another thread costs more (waking it, mostly) than it brings: about 10 us. With
// few tokens the weights' bytes are the work, as many as kLeastTokens' products would be.
constexpr double kProductsPerThread = 4e6;
constexpr std::int64_t kLeastTokens = 8;
constexpr std::int64_t kQuantizedPerTask = 32 * 1024;

const Kernels& kernels_for(Isa isa) {
#ifdef SPARSE_RUNTIME_HAS_AVX512_VNNI
  if (isa >= Isa::kAvx512Vnni) return kAvx512VnniKernels;
#endif
#ifdef SPARSE_RUNTIME_HAS_AVX2
  if (isa >= Isa::kAvx2) return kAvx2Kernels;
#endif
  return kGenericKernels;
}

int useful_threads(const Product& p, int num_threads) {
  // In floating point: t * n * k may exceed 64 bits.
  const double products = static_cast<double>(std::max(p.t, kLeastTokens)) * (p.n * p.k);
  return static_cast<int>(std::clamp(products / kProductsPerThread, 1.0, double(num_threads)));
}

std::int64_t tokens_per_task(const Product& p, int tile_tokens, int num_threads) {
  const std::int64_t tiles = layout::ceil_div(p.t, tile_tokens);
  const std::int64_t cached = kTaskActivationBytes / (std::max<std::int64_t>(p.k, 1) * tile_tokens);
  const std::int64_t groups = layout::ceil_div(p.n, kTileColumns);
  // Several tasks a thread, so that an uneven last round costs little.
  const std::int64_t balanced = tiles * groups / (4 * std::int64_t{num_threads});
  const std::int64_t most = std::min(cached, kMaxTaskTokens / tile_tokens);
  return std::clamp<std::int64_t>(std::min(most, balanced), 1, tiles) * tile_tokens;
}

void starting_sums(const Product& p, std::int64_t column, int columns, std::int32_t* start) {
  // |row_sum| <= 65536 * 128, so the product fits int32.
  if (p.zero_points != nullptr) return;  // taken off when a token's sums are finished
  for (int j = 0; j < columns; ++j) start[j] = -p.zero_point * p.row_sums[column + j];
}

// Calls sink(token, column, columns, sums) for every token's run of up to kTileColumns outputs.
template <typename Sink>
void for_each_tile_row(Isa isa, int num_threads, const Product& p, const Sink& sink) {
  const Kernels& kernels = kernels_for(isa);
  const int threads = useful_threads(p, num_threads);
  const std::int64_t block = tokens_per_task(p, kernels.tile_tokens, threads);
  const std::int64_t groups = layout::ceil_div(p.n, kTileColumns);
  const std::int64_t blocks = layout::ceil_div(p.t, block);
  parallel_for(groups * blocks, threads, [&](std::int64_t task) {
    const std::int64_t column = task % groups * kTileColumns;
    const std::int64_t first = task / groups * block;
    const std::int64_t end = std::min(p.t, first + block);
    const int columns = static_cast<int>(std::min<std::int64_t>(kTileColumns, p.n - column));
    const int panels = static_cast<int>(layout::panel_count(columns));
    alignas(64) std::int32_t start[kTileColumns] = {};
    alignas(64) std::int32_t sums[kMaxTileTokens * kTileColumns];
    starting_sums(p, column, panels * static_cast<int>(layout::kLanes), start);
    Tile tile = {};
    tile.x_stride = p.x_stride;
    tile.panels = p.packed + layout::cell_offset(column, 0, p.k);
    tile.panel_count = panels;
    tile.k = p.k;
    tile.start = start;
    for (std::int64_t token = first; token < end; token += kernels.tile_tokens) {
      tile.x = p.x + token * p.x_stride;
      tile.tokens = static_cast<int>(std::min<std::int64_t>(kernels.tile_tokens, end - token));
      kernels.accumulate(tile, sums);
      for (int i = 0; i < tile.tokens; ++i) {
        sink(token + i, column, columns, sums + i * kTileColumns);
      }
    }
  });
}

template <typename QuantizeOne>
void for_each_row(int num_threads, const QuantizeShape& shape, const QuantizeOne& quantize_one) {
  const std::int64_t rows_per_task =
      std::max<std::int64_t>(1, kQuantizedPerTask / std::max<std::int64_t>(shape.k, 1));
  const std::int64_t tasks = layout::ceil_div(shape.t, rows_per_task);
  parallel_for(tasks, num_threads, [&](std::int64_t task) {
    const std::int64_t first = task * rows_per_task;
    const std::int64_t end = std::min(shape.t, first + rows_per_task);
    for (std::int64_t row = first; row < end; ++row) quantize_one(row);
  });
}

}  // namespace

void quantize_rows(Isa isa, int num_threads, const QuantizeShape& shape, const float* x,
                   std::uint8_t* q, float* scale) {
  const Kernels& kernels = kernels_for(isa);
  for_each_row(num_threads, shape, [&](std::int64_t row) {
    scale[row] = kernels.quantize_row(x + row * shape.x_stride, shape.k, q + row * shape.q_stride);
  });
}

void quantize_rows_asymmetric(Isa isa, int num_threads, const QuantizeShape& shape, const float* x,
                              std::uint8_t* q, float* scale, std::uint8_t* zero_points) {
  const Kernels& kernels = kernels_for(isa);
  for_each_row(num_threads, shape, [&](std::int64_t row) {
    scale[row] = kernels.quantize_row_asymmetric(x + row * shape.x_stride, shape.k,
                                                 q + row * shape.q_stride, zero_points + row);
  });
}

void quantize_static(Isa isa, int num_threads, const QuantizeShape& shape, const float* x,
                     const StaticQuantization& quantization, std::uint8_t* q) {
  const Kernels& kernels = kernels_for(isa);
  const StaticQuantization& s = quantization;
  for_each_row(num_threads, shape, [&](std::int64_t row) {
    kernels.quantize_row_static(x + row * shape.x_stride, shape.k, s.scale, s.zero_point, s.low,
                                s.high, q + row * shape.q_stride);
  });
}

void linear(Isa isa, int num_threads, const Product& product, const Epilogue& epilogue, float* out,
            std::int64_t out_stride) {
  const Kernels& kernels = kernels_for(isa);
  const Epilogue& e = epilogue;
  const auto finish = [&](std::int64_t token, std::int64_t column, int columns,
                          const std::int32_t* sums) {
    Finish row = {};
    row.acc = sums;
    row.row_sums = product.row_sums + column;
    if (product.zero_points != nullptr) row.zero_point = product.zero_points[token];
    row.columns = columns;
    row.x_scale = e.x_scale[e.x_scale_is_per_row ? token : 0];
    row.w_scale = e.w_scale + column;
    if (e.bias != nullptr) row.bias = e.bias + column;
    if (e.residual != nullptr) row.residual = e.residual + token * e.residual_stride + column;
    row.activation = e.activation;
    row.out = out + token * out_stride + column;
    kernels.finish(row);
  };
  for_each_tile_row(isa, num_threads, product, finish);
}

void accumulate(Isa isa, int num_threads, const Product& product, std::int32_t* out,
                std::int64_t out_stride) {
  const auto copy = [&](std::int64_t token, std::int64_t column, int columns,
                        const std::int32_t* sums) {
    std::int32_t* const to = out + token * out_stride + column;
    const std::uint32_t zero_point =
        product.zero_points == nullptr ? 0 : product.zero_points[token];
    for (int j = 0; j < columns; ++j) {
      const auto row_sum = static_cast<std::uint32_t>(product.row_sums[column + j]);
      to[j] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[j]) - zero_point * row_sum);
    }
  };
  for_each_tile_row(isa, num_threads, product, copy);
}

}  // namespace sparse_runtime::int8_linear
