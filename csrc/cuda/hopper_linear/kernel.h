// A linear layer on wgmma, dense or two of four, built from CUTLASS 4.2: one template, so that
// either is measured against its like. Only for sm_90a.
//
// Weights are the A of the products and tokens their columns, as in mma_linear: few tokens then
// need narrow tiles only, and two of four, which wgmma has for A alone, needs no other layout of
// the tokens. A splits its inputs over "batches", whose sums the epilogue joins.
#pragma once

#include "cuda/hopper_linear/epilogue.h"
#include "cuda/hopper_linear/layout.h"
#include "cuda/hopper_linear/table.h"
#include "cutlass/bfloat16.h"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/dispatch_policy.hpp"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/half.h"

namespace sparse_runtime::hopper {

using cute::Int;

template <int kOut, int kTok, typename Schedule_, int kClusterOut, int kClusterTok>
struct Tile {
  static constexpr int out = kOut, tok = kTok;
  using Schedule = Schedule_;
  using Cluster = cute::Shape<Int<kClusterOut>, Int<kClusterTok>, cute::_1>;
};

using Pingpong = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
using Cooperative = cutlass::gemm::KernelTmaWarpSpecializedCooperative;

// Neighbours of a cluster fetch one operand once for both.
using Tile128x256 = Tile<128, 256, Cooperative, 2, 1>;
using Tile128x128 = Tile<128, 128, Pingpong, 1, 2>;
using Tile64x128 = Tile<64, 128, Pingpong, 1, 1>;
using Tile64x32 = Tile<64, 32, Pingpong, 1, 1>;

template <typename T>
struct TypeOf;
template <>
struct TypeOf<std::int8_t> {
  static constexpr int value = SR_INT8;
};
template <>
struct TypeOf<cutlass::bfloat16_t> {
  static constexpr int value = SR_BF16;
};
template <>
struct TypeOf<cutlass::half_t> {
  static constexpr int value = SR_F16;
};

template <typename T, bool kSparse, typename Tile>
struct Linear {
  static constexpr int kTileIn = tile_inputs(sizeof(T));
  static constexpr int kGroups = std::is_same_v<typename Tile::Schedule, Cooperative> ? 2 : 1;
  using Sum = std::conditional_t<sizeof(T) == 1, std::int32_t, float>;
  using Shape = cute::Shape<Int<Tile::out>, Int<Tile::tok>, Int<kTileIn>>;
  using Finish = cutlass::epilogue::collective::detail::Sm90TmaWarpSpecializedAdapter<
      Epilogue<Sum, Shape, kGroups>>;
  static constexpr int kAligned = 16 / sizeof(T);  // TMA's 16 bytes
  using Operator = std::conditional_t<kSparse, cutlass::arch::OpClassSparseTensorOp,
                                      cutlass::arch::OpClassTensorOp>;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, Operator, T, cutlass::layout::RowMajor,
      kSparse ? 2 * kAligned : kAligned, T, cutlass::layout::ColumnMajor, kAligned, Sum, Shape,
      typename Tile::Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<sizeof(typename Finish::SharedStorage) +
                                                        1024>,
      typename Tile::Schedule>::CollectiveOp;
  using Problem = cute::Shape<int, int, int, int>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Problem, Mainloop, Finish>;
  static_assert(Kernel::SharedStorageSize <=
                cutlass::gemm::collective::detail::sm90_smem_capacity_bytes);
  static_assert(Mainloop::DispatchPolicy::Stages >= 3);

  static typename Kernel::Arguments arguments(const SrLinear& p, int processors) {
    const int share = p.in_features / p.split_k;
    const int padded = padded_inputs(p.in_features, sizeof(T));
    // Of an only split, TMA ignores where the next begins, but wants multiples of 16 bytes.
    const std::int64_t apart = p.split_k > 1 ? share : 0;
    const auto* const x = static_cast<const T*>(p.x);
    const auto* const weight = static_cast<const T*>(p.weight);
    typename Kernel::Arguments arguments;
    arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    arguments.problem_shape = cute::make_shape(p.out_features, p.tokens, share, p.split_k);
    auto& operands = arguments.mainloop;
    operands.ptr_A = weight;
    operands.ptr_B = x;
    operands.dB = cute::make_stride(p.x_stride, cute::_1{}, apart);
    if constexpr (kSparse) {
      // One split holds whole tiles of the packed order (split_multiple), or is all of it.
      const int packed = p.split_k > 1 ? share : padded;
      using Config = typename Mainloop::SparseConfig;
      // What tests/cuda/cutlass_layouts.cu compares with layout.h.
      static_assert(std::is_same_v<Config, cutlass::Sm90GemmSparseConfig<
                                               cute::sparse_elem<2, T>, cute::GMMA::Major::K,
                                               cute::sparse_elem<8, std::uint8_t>, Int<kTileIn>>>);
      auto values =
          Config::fill_layoutA(cute::make_tuple(p.out_features, p.tokens, packed, p.split_k));
      cute::get<0>(values.stride()) = padded;
      cute::get<2>(values.stride()) = apart;
      operands.layout_a = values;
      operands.layout_e =
          Config::fill_layoutE(cute::make_tuple(p.out_features, p.tokens, packed, p.split_k));
      operands.ptr_E = reinterpret_cast<decltype(operands.ptr_E)>(
          static_cast<const unsigned char*>(p.weight) +
          metadata_offset(p.out_features, p.in_features, sizeof(T)));
    } else {
      operands.dA = cute::make_stride(std::int64_t{padded}, cute::_1{}, apart);
    }
    arguments.epilogue.linear = p;
    arguments.epilogue.tiles_out = (p.out_features + Tile::out - 1) / Tile::out;
    arguments.epilogue.by_four = rows_by_four(p);
    arguments.hw_info.sm_count = processors;
    // Tiles of outputs vary fastest: neighbours share their tokens, and weights stay in the cache.
    using Order = decltype(arguments.scheduler.raster_order);
    arguments.scheduler.raster_order = Order::AlongM;
    return arguments;
  }
};

// cutlass::device_kernel under a short name, which kernels/cuda_compiled.py reads.
template <typename T, bool kSparse, typename Tile>
__global__ void __launch_bounds__(Linear<T, kSparse, Tile>::Kernel::MaxThreadsPerBlock,
                                  Linear<T, kSparse, Tile>::Kernel::MinBlocksPerMultiprocessor)
    linear_kernel(const __grid_constant__ typename Linear<T, kSparse, Tile>::Kernel::Params given) {
  extern __shared__ char shared[];
  typename Linear<T, kSparse, Tile>::Kernel kernel;
  kernel(given, shared);
}

template <typename T, bool kSparse, typename Tile>
cudaError_t launch(const SrLinear& p, int processors, cudaStream_t stream) {
  using Chosen = Linear<T, kSparse, Tile>;
  using Kernel = typename Chosen::Kernel;
  typename Kernel::Params params =
      Kernel::to_underlying_arguments(Chosen::arguments(p, processors), nullptr);
  const auto* const function = reinterpret_cast<const void*>(linear_kernel<T, kSparse, Tile>);
  const auto error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          Kernel::SharedStorageSize);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {cute::size<0>(typename Tile::Cluster{}),
                            cute::size<1>(typename Tile::Cluster{}), 1};
  cudaLaunchConfig_t config{};
  config.gridDim = Kernel::get_grid_shape(params);
  config.blockDim = Kernel::get_block_shape();
  config.dynamicSmemBytes = Kernel::SharedStorageSize;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  void* arguments[] = {&params};
  return cudaLaunchKernelExC(&config, function, arguments);
}

template <typename T, bool kSparse, typename Tile>
constexpr hopper::Kernel describe(const char* name) {
  using Chosen = Linear<T, kSparse, Tile>;
  return {name,
          TypeOf<T>::value,
          kSparse ? SR_TWO_OF_FOUR : SR_DENSE,
          Tile::out,
          Tile::tok,
          Chosen::kTileIn,
          Chosen::kGroups,
          Chosen::Kernel::MaxThreadsPerBlock,
          Chosen::Kernel::SharedStorageSize,
          launch<T, kSparse, Tile>};
}

#define SPARSE_RUNTIME_HOPPER_KERNEL(TYPE, T, STRUCTURE, SPARSE, TILE)           \
  namespace sparse_runtime::hopper {                                             \
  extern const Kernel k_##TYPE##_##STRUCTURE##_##TILE =                          \
      describe<T, SPARSE, Tile##TILE>("hopper." #TYPE "." #STRUCTURE "." #TILE); \
  }

}  // namespace sparse_runtime::hopper
