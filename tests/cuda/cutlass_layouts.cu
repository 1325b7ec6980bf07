// Where CUTLASS says that the values and metadata of a two-of-four weight lie, for
// test_hopper_packing.py.
#include "cutlass/bfloat16.h"
#include "cutlass/gemm/collective/builders/sm90_common.inl"
#include "cutlass/gemm/collective/builders/sm90_sparse_config.inl"

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

}  // namespace

extern "C" void cutlass_places(int value_bytes, int outputs, int inputs, long long* values,
                               long long* nibbles) {
  if (value_bytes == 1) {
    places<std::int8_t>(outputs, inputs, values, nibbles);
  } else {
    places<cutlass::bfloat16_t>(outputs, inputs, values, nibbles);
  }
}
