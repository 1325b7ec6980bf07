// The mma kernels on the host, behind a C function that tests call.
#include <cstdio>
#include <exception>

#include "cuda/emulate/emulate.h"
#include "cuda/mma_linear/quantize_rows.h"
#include "cuda/mma_linear/table.h"

extern "C" {

typedef struct {
  const void* begin;
  int64_t bytes;
  int32_t writable;
} SrRange;

// Runs what sr_linear enqueues. Only `ranges` may be touched. Returns 0, or 1 with a message in
// `error`.
int32_t sr_emulate_linear(int32_t number, const SrLinear* layer, const SrRange* ranges,
                          int32_t range_count, uint32_t seed, char* error, int64_t error_bytes) {
  using namespace sparse_runtime;
  const auto* kernel = mma::kernel(number);
  if (!kernel) return SR_NO_SUCH_KERNEL;
  const auto grid = mma::grid(*kernel, layer->tokens, layer->out_features, layer->split_k);
  emulate::Launch launch;
  launch.blocks_x = grid.tiles;
  launch.blocks_y = grid.splits;
  launch.threads = kernel->threads;
  launch.shared_bytes = kernel->shared_bytes;
  launch.seed = seed;
  for (int32_t i = 0; i < range_count; ++i) {
    launch.memory.push_back(
        {ranges[i].begin, static_cast<std::size_t>(ranges[i].bytes), ranges[i].writable != 0});
  }
  try {
    emulate::run(launch, [&] { kernel->function(*layer); });
    if (layer->scheme >= SR_SYMMETRIC) {
      launch.blocks_x = layer->tokens;
      launch.blocks_y = 1;
      launch.threads = mma::kQuantizeThreads;
      launch.shared_bytes = 0;
      emulate::run(launch, [&] { mma::quantize_kernel(*layer); });
    }
  } catch (const std::exception& thrown) {
    std::snprintf(error, error_bytes, "%s", thrown.what());
    return 1;
  }
  return SR_OK;
}

}  // extern "C"
