// Where CUTLASS says that the values and metadata of a two-of-four weight lie, for
// test_hopper_packing.py, and where wgmma leaves sums.
#include <vector>

#include "cuda/hopper_linear/kernel.h"
#include "cutlass/bfloat16.h"
#include "cutlass/gemm/collective/builders/sm90_common.inl"
#include "cutlass/gemm/collective/builders/sm90_sparse_config.inl"

namespace hopper = sparse_runtime::hopper;

bool hopper::rows_by_four(const SrLinear&) {
  return true;
}

namespace {

template <typename T>
using Config = cutlass::Sm90GemmSparseConfig<cute::sparse_elem<2, T>, cute::GMMA::Major::K,
                                             cute::sparse_elem<8, std::uint8_t>,
                                             cute::Int<128 / int(sizeof(T))>>;

// [outputs][inputs / 4] each: the first kept value's place, and the four bits' place.
template <typename T>
void places(int outputs, int inputs, long long* values, long long* nibbles) {
  const auto problem = cute::make_tuple(outputs, 8, inputs, 1);
  const auto layout_a = Config<T>::fill_layoutA(problem);
  const auto layout_e = Config<T>::fill_layoutE(problem);
  for (int m = 0; m < outputs; ++m) {
    for (int k = 0; k < inputs; k += 4) {
      // Both count elements of the dense matrix: two a stored value, eight a byte of metadata.
      *values++ = layout_a(m, k, 0) / 2;
      *nibbles++ = layout_e(m, k, 0) / 4;
    }
  }
}

// Sums of a tile that Epilogue::stage would put outside of the block [64 outputs][32 tokens] that
// it fills, or where another is; kBlocks blocks of outputs a warpgroup.
template <int kGroups, int kBlocks, int kTok, typename Atom>
int misplaced(Atom atom) {
  const auto mma = cute::make_tiled_mma(
      atom, cute::Layout<cute::Shape<cute::Int<kGroups>, cute::_1, cute::_1>>{});
  const auto tile = cute::make_shape(cute::Int<64 * kGroups * kBlocks>{}, cute::Int<kTok>{});
  std::vector<int> seen(64 * kGroups * kBlocks * kTok);
  int wrong = 0;
  for (int thread = 0; thread < 128 * kGroups; ++thread) {
    const auto places = mma.get_thread_slice(thread).partition_C(cute::make_identity_tensor(tile));
    static_assert(decltype(cute::size<0>(places))::value == kTok / 2);
    static_assert(decltype(cute::size<1>(places))::value == kBlocks);
    for (int m = 0; m < kBlocks; ++m) {
      for (int i = 0; i < kTok / 2; ++i) {
        const auto place = places(i, m, 0);
        const int out = cute::get<0>(place), token = cute::get<1>(place);
        const int row0 = (m * kGroups + thread / 128) * 64, first = i / 16 * 32;
        wrong += out < row0 || out >= row0 + 64 || token < first || token >= first + 32;
        wrong += seen.at(out * kTok + token)++;
      }
    }
  }
  return wrong;
}

// Values and metadata of a weight in splits that do not lie where the same lie in one piece.
template <typename T>
int lost_in_splits(int outputs, int inputs, int splits) {
  using Linear = hopper::Linear<T, true, hopper::Tile64x32>;
  SrLinear layer{};
  layer.out_features = outputs;
  layer.in_features = inputs;
  layer.tokens = 1;
  layer.split_k = 1;
  const auto whole = Linear::arguments(layer, 132).mainloop;
  layer.split_k = splits;
  const auto parts = Linear::arguments(layer, 132).mainloop;
  const int share = inputs / splits;
  int wrong = cute::get<2>(parts.dB) != share;
  for (int m = 0; m < outputs; ++m) {
    for (int k = 0; k < inputs; ++k) {
      wrong += whole.layout_a(m, k, 0) != parts.layout_a(m, k % share, k / share);
      wrong += whole.layout_e(m, k, 0) != parts.layout_e(m, k % share, k / share);
    }
  }
  return wrong;
}

}  // namespace

extern "C" int cutlass_lost_in_splits() {
  return lost_in_splits<std::int8_t>(70, 768, 3) + lost_in_splits<cutlass::half_t>(70, 256, 4);
}

extern "C" int cutlass_misplaced_sums() {
  return misplaced<2, 1, 256>(cute::SM90_64x256x32_S32S8S8_SS_TN{}) +
         misplaced<1, 2, 128>(cute::SM90_64x128x32_S32S8S8_SS_TN{}) +
         misplaced<1, 1, 32>(cute::SM90_64x32x32_S32S8S8_SS_TN{});
}

extern "C" void cutlass_places(int value_bytes, int outputs, int inputs, long long* values,
                               long long* nibbles) {
  if (value_bytes == 1) {
    places<std::int8_t>(outputs, inputs, values, nibbles);
  } else {
    places<cutlass::bfloat16_t>(outputs, inputs, values, nibbles);
  }
}
