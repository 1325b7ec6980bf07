// Packing on the host (weights.h has the layout).
#include <cstring>

#include "cuda/api/sparse_runtime_cuda.h"
#include "cuda/hopper_linear/layout.h"
#include "cuda/hopper_linear/pack.h"
#include "cuda/mma_linear/weights.h"

namespace sparse_runtime::mma {
namespace {

bool known(int type, int structure) {
  return type >= SR_INT8 && type <= SR_F16 &&
         (structure == SR_DENSE || structure == SR_TWO_OF_FOUR);
}

int value_bytes(int type) {
  return type == SR_INT8 ? 1 : 2;
}

std::int64_t packed_bytes(int type, int structure, int outputs, int inputs) {
  return std::int64_t{tiles(outputs)} * slabs(inputs) *
         slab_bytes(value_bytes(type), structure == SR_TWO_OF_FOUR);
}

template <typename T>
bool pack(bool sparse, const Matrix<const T>& matrix, unsigned char* to) {
  bool fits = true;
  for (int tile = 0; tile < tiles(matrix.outputs); ++tile) {
    for (int slab = 0; slab < slabs(matrix.inputs); ++slab) {
      for (int lane = 0; lane < 32; ++lane) {
        fits = pack_lane(matrix, sparse, tile, slab, lane, to) && fits;
      }
      to += slab_bytes(sizeof(T), sparse);
    }
  }
  return fits;
}

template <typename T>
void unpack(bool sparse, const unsigned char* from, const Matrix<T>& matrix) {
  for (int tile = 0; tile < tiles(matrix.outputs); ++tile) {
    for (int slab = 0; slab < slabs(matrix.inputs); ++slab) {
      for (int lane = 0; lane < 32; ++lane) unpack_lane(from, sparse, tile, slab, lane, matrix);
      from += slab_bytes(sizeof(T), sparse);
    }
  }
}

}  // namespace
}  // namespace sparse_runtime::mma

using namespace sparse_runtime::mma;

extern "C" {

int64_t sr_packed_bytes(int32_t type, int32_t structure, int32_t outputs, int32_t inputs) {
  return known(type, structure) ? packed_bytes(type, structure, outputs, inputs) : 0;
}

int32_t sr_pack_weight(int32_t type, int32_t structure, const void* values, int32_t outputs,
                       int32_t inputs, void* packed) {
  if (!known(type, structure)) return SR_INVALID;
  const bool sparse = structure == SR_TWO_OF_FOUR;
  auto* const to = static_cast<unsigned char*>(packed);
  const bool fits =
      value_bytes(type) == 1
          ? pack<std::uint8_t>(sparse, {static_cast<const std::uint8_t*>(values), outputs, inputs},
                               to)
          : pack<std::uint16_t>(sparse,
                                {static_cast<const std::uint16_t*>(values), outputs, inputs}, to);
  return fits ? SR_OK : SR_INVALID;
}

int32_t sr_unpack_weight(int32_t type, int32_t structure, const void* packed, int32_t outputs,
                         int32_t inputs, void* values) {
  if (!known(type, structure)) return SR_INVALID;
  const bool sparse = structure == SR_TWO_OF_FOUR;
  const auto* const from = static_cast<const unsigned char*>(packed);
  std::memset(values, 0, std::size_t(outputs) * inputs * value_bytes(type));
  if (value_bytes(type) == 1) {
    unpack<std::uint8_t>(sparse, from, {static_cast<std::uint8_t*>(values), outputs, inputs});
  } else {
    unpack<std::uint16_t>(sparse, from, {static_cast<std::uint16_t*>(values), outputs, inputs});
  }
  return SR_OK;
}

int64_t sr_packed_bytes_in(int32_t order, int32_t type, int32_t structure, int32_t outputs,
                           int32_t inputs) {
  if (order == SR_ORDER_MMA) return sr_packed_bytes(type, structure, outputs, inputs);
  if (order != SR_ORDER_HOPPER || !known(type, structure)) return 0;
  return sparse_runtime::hopper::packed_bytes(outputs, inputs, value_bytes(type),
                                              structure == SR_TWO_OF_FOUR);
}

int32_t sr_pack_weight_in(int32_t order, int32_t type, int32_t structure, const void* values,
                          int32_t outputs, int32_t inputs, void* packed) {
  if (order == SR_ORDER_MMA) {
    return sr_pack_weight(type, structure, values, outputs, inputs, packed);
  }
  if (order != SR_ORDER_HOPPER || !known(type, structure)) return SR_INVALID;
  const bool fits = sparse_runtime::hopper::pack(value_bytes(type), structure == SR_TWO_OF_FOUR,
                                                 values, outputs, inputs, packed);
  return fits ? SR_OK : SR_INVALID;
}

int32_t sr_unpack_weight_in(int32_t order, int32_t type, int32_t structure, const void* packed,
                            int32_t outputs, int32_t inputs, void* values) {
  if (order == SR_ORDER_MMA) {
    return sr_unpack_weight(type, structure, packed, outputs, inputs, values);
  }
  if (order != SR_ORDER_HOPPER || !known(type, structure)) return SR_INVALID;
  sparse_runtime::hopper::unpack(value_bytes(type), structure == SR_TWO_OF_FOUR, packed, outputs,
                                 inputs, values);
  return SR_OK;
}

}  // extern "C"
