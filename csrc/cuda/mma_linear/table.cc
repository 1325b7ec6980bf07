#include "cuda/mma_linear/table.h"

#ifdef SPARSE_RUNTIME_HOPPER
#include "cuda/hopper_linear/table.h"
#endif

namespace sparse_runtime::mma {
namespace {

const KernelGroup* const kGroups[] = {&kInt8Dense, &kInt8TwoOfFour, &kInt8Exact,
                                      &kBf16Dense, &kBf16TwoOfFour, &kBf16Exact,
                                      &kF16Dense,  &kF16TwoOfFour,  &kF16Exact};
constexpr int kEach = sizeof(KernelGroup::kernels) / sizeof(Kernel);
constexpr int kCount = sizeof(kGroups) / sizeof(kGroups[0]) * kEach;

int blocks(int size, int block) {
  return (size + block - 1) / block;
}

}  // namespace

int kernel_count() {
  return kCount;
}

const Kernel* kernel(int number) {
  return number < 0 || number >= kCount ? nullptr
                                        : &kGroups[number / kEach]->kernels[number % kEach];
}

Grid grid(const Kernel& kernel, int tokens, int out_features, int split_k) {
  return {blocks(tokens, kernel.tile_tok) * blocks(out_features, kernel.tile_out), split_k};
}

}  // namespace sparse_runtime::mma

using sparse_runtime::mma::kernel;

namespace {

int blocks(int size, int block) {
  return (size + block - 1) / block;
}

#ifdef SPARSE_RUNTIME_HOPPER
// Their numbers follow those of mma.
const sparse_runtime::hopper::Kernel* hopper_kernel(int32_t number) {
  return sparse_runtime::hopper::kernel(number - sparse_runtime::mma::kernel_count());
}
#endif

}  // namespace

extern "C" {

int32_t sr_abi_version(void) {
  return SR_ABI_VERSION;
}

int32_t sr_kernel_count(void) {
#ifdef SPARSE_RUNTIME_HOPPER
  return sparse_runtime::mma::kernel_count() + sparse_runtime::hopper::kernel_count();
#else
  return sparse_runtime::mma::kernel_count();
#endif
}

int32_t sr_kernel(int32_t number, SrKernel* out) {
#ifdef SPARSE_RUNTIME_HOPPER
  if (const auto* found = hopper_kernel(number)) {
    *out = {found->name, found->type, found->structure, found->tile_out, found->tile_tok};
    return SR_OK;
  }
#endif
  const auto* found = kernel(number);
  if (!found) return SR_NO_SUCH_KERNEL;
  *out = {found->name, found->type, found->structure, found->tile_out, found->tile_tok};
  return SR_OK;
}

int32_t sr_kernel_needs(int32_t number, SrNeeds* out) {
#ifdef SPARSE_RUNTIME_HOPPER
  if (const auto* found = hopper_kernel(number)) {
    *out = {SR_ORDER_HOPPER, 90, found->tile_in, 128, found->threads, found->shared_bytes};
    return SR_OK;
  }
#endif
  const auto* found = kernel(number);
  if (!found) return SR_NO_SUCH_KERNEL;
  *out = {SR_ORDER_MMA, 80, 1, 16, found->threads, found->shared_bytes};
  return SR_OK;
}

int32_t sr_workspace(int32_t number, int32_t tokens, int32_t out_features, int32_t split_k,
                     int64_t* partial_bytes, int64_t* tile_counters) {
#ifdef SPARSE_RUNTIME_HOPPER
  if (const auto* found = hopper_kernel(number)) {
    const int tiles = blocks(tokens, found->tile_tok) * blocks(out_features, found->tile_out);
    *partial_bytes =
        split_k > 1 ? int64_t{tiles} * split_k * found->tile_out * found->tile_tok * 4 : 0;
    *tile_counters = split_k > 1 ? tiles * found->groups : 0;
    return SR_OK;
  }
#endif
  const auto* found = kernel(number);
  if (!found) return SR_NO_SUCH_KERNEL;
  const auto tiles = sparse_runtime::mma::grid(*found, tokens, out_features, split_k).tiles;
  *partial_bytes = split_k > 1 ? int64_t{tiles} * split_k * found->partial_bytes : 0;
  *tile_counters = split_k > 1 ? tiles : 0;
  return SR_OK;
}

}  // extern "C"
