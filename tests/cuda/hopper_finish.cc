// csrc/cuda/hopper_linear/finish.h on the host: the epilogue of the wgmma kernels, for
// test_hopper_finish.py. Sums come from p.partials, [tokens][outputs rounded up to 64].
#include <cstdio>
#include <exception>

#include "cuda/emulate/emulate.h"
#include "cuda/hopper_linear/finish.h"

namespace {

using namespace sparse_runtime;

template <typename Sum>
void finish_block(const hopper::Layer& layer) {
  const SrLinear& p = layer.linear;
  const int thread = ptx::thread(), width = (p.out_features + 63) / 64 * 64;
  const int output = ptx::block_x() * 64 + thread % 16 * 4;
  const auto columns = hopper::load_columns(p, output);
  hopper::Scale scale{1.0F, 0, 1.0F};
  if (p.scheme == SR_STATIC) {
    scale = hopper::make_scale(ptx::load(p.scale), p.zero ? ptx::load(p.zero) : 0);
  }
  for (int i = thread / 16; i < 32; i += 8) {
    const int token = ptx::block_y() * 32 + i;
    hopper::Four<Sum> four{};
    if (token < p.tokens) {
      for (int j = 0; j < 4; ++j) {
        four.sums[j] = static_cast<const Sum*>(p.partials)[token * width + output + j];
      }
    }
    hopper::finish_four(layer, columns, hopper::load_token(p, token),
                        hopper::load_residual(layer, columns, token), token, scale, four);
  }
}

}  // namespace

// Of `count` quotients, those that quotient() and a division quantize to different integers.
extern "C" int64_t wrong_quotients(const float* x, const float* scales, int64_t count) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto scale = hopper::make_scale(scales[i], 0);
    const float inverted = scale.inverse != 0.0F ? hopper::quotient(x[i], scale) : x[i] / scales[i];
    const int zero = static_cast<int>(i % 256) - 128;
    for (const int range : {127, 1 << 21}) {  // as stored, and wide enough to see what is rounded
      wrong += hopper::quantize_scaled(inverted, zero, -range, range) !=
               mma::quantize_static(x[i], scales[i], zero, -range, range);
    }
  }
  return wrong;
}

extern "C" int finish_rows(const SrLinear* layer, int by_four, int integers, char* error,
                           int64_t error_bytes) {
  emulate::Launch launch;
  launch.blocks_x = (layer->out_features + 63) / 64;
  launch.blocks_y = (layer->tokens + 31) / 32;
  launch.threads = 128;
  launch.memory.push_back({nullptr, std::size_t{1} << 62, true});
  const hopper::Layer given{*layer, 0, by_four != 0};
  try {
    emulate::run(
        launch, [&] { integers ? finish_block<std::int32_t>(given) : finish_block<float>(given); });
  } catch (const std::exception& thrown) {
    std::snprintf(error, error_bytes, "%s", thrown.what());
    return 1;
  }
  return 0;
}
