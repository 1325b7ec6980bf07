// What the wgmma kernels tell the copy engine (TMA) and the launch, for test_hopper_descriptors.py:
// the library's own arguments go through CUTLASS on the host, and a stand-in for the driver reads
// the descriptors, holds them to its rules, and then every element that they find.
#include <cuda.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/hopper_linear/kernel.h"

namespace hopper = sparse_runtime::hopper;

bool hopper::rows_by_four(const SrLinear&) {
  return true;
}

namespace {

struct Descriptor {
  const char* base;
  int rank;
  std::int64_t element, dims[5], strides[5], box_bytes;

  bool holds(const std::vector<std::int64_t>& at) const {
    for (int i = 0; i < rank; ++i) {
      if (at[i] < 0 || at[i] >= dims[i]) return false;
    }
    return true;
  }
  const char* address(const std::vector<std::int64_t>& at) const {
    const char* p = base;
    for (int i = 0; i < rank; ++i) p += at[i] * strides[i];
    return p;
  }
  const char* end() const {
    const char* p = base + element;
    for (int i = 0; i < rank; ++i) p += (dims[i] - 1) * strides[i];
    return p;
  }
};

std::vector<Descriptor> made;
std::string faults;

void expect(bool holds, const char* what, std::int64_t got) {
  if (!holds && faults.size() < 2000) {
    faults += std::string(what) + " (" + std::to_string(got) + "); ";
  }
}

int element_bytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
      return 8;
    default:
      return 4;
  }
}

// Coordinates of a CuTe tensor of TMA coordinates.
template <typename Coordinates>
std::vector<std::int64_t> numbers(const Coordinates& at) {
  std::vector<std::int64_t> found;
  cute::for_each(at, [&](const auto& each) { found.push_back(int(each)); });
  found.resize(5);
  return found;
}

template <typename T, bool kSparse, typename Tile>
void check(const SrLinear& p, std::int64_t x_bytes, std::int64_t weight_bytes) {
  using Linear = hopper::Linear<T, kSparse, Tile>;
  using Kernel = typename Linear::Kernel;
  const auto arguments = Linear::arguments(p, 132);
  made.clear();
  const auto params = Kernel::to_underlying_arguments(arguments, nullptr);
  expect(made.size() == (kSparse ? 3 : 2), "descriptors", made.size());
  if (made.size() != (kSparse ? 3 : 2)) return;
  expect(Kernel::get_workspace_size(arguments) == 0, "workspace", 0);
  expect(sizeof(params) <= 4096, "bytes of parameters", sizeof(params));
  expect(Kernel::SharedStorageSize <= 227 * 1024, "shared memory", Kernel::SharedStorageSize);
  const dim3 grid = Kernel::get_grid_shape(params);
  constexpr int across = cute::size<0>(typename Tile::Cluster{});
  constexpr int along = cute::size<1>(typename Tile::Cluster{});
  expect(grid.x > 0 && grid.x % across == 0, "grid.x", grid.x);
  expect(grid.y > 0 && grid.y % along == 0, "grid.y", grid.y);
  expect(grid.z == 1 && grid.x * grid.y <= 132, "blocks", grid.x * grid.y * grid.z);

  const int share = p.in_features / p.split_k, splits = p.split_k;
  const int steps = (share + Linear::kTileIn - 1) / Linear::kTileIn;
  const Descriptor &a = made.front(), &b = made.back();
  const char* const x = static_cast<const char*>(p.x);
  const char* const weight = static_cast<const char*>(p.weight);
  expect(b.end() <= x + x_bytes, "x is read beyond its end", b.end() - x - x_bytes);
  expect(a.end() <= weight + weight_bytes, "weights are read beyond their end", 0);
  // What a stage waits for, and what the boxes of a cluster bring.
  const std::int64_t values = Tile::out * Linear::kTileIn * int(sizeof(T)) / (kSparse ? 2 : 1);
  expect(a.box_bytes * along == values, "bytes of a box of weights", a.box_bytes);
  const std::int64_t tokens = Tile::tok * Linear::kTileIn * int(sizeof(T));
  expect(b.box_bytes * across == tokens, "bytes of a box of tokens", b.box_bytes);

  const auto b_at =
      params.mainloop.tma_load_b.get_tma_tensor(cute::make_shape(p.tokens, share, splits));
  for (int l = 0; l < splits; ++l) {
    for (int n = 0; n < p.tokens; ++n) {
      for (int k = 0; k < steps * Linear::kTileIn; ++k) {
        const auto at = numbers(b_at(n, k, l));
        expect(b.holds(at) == (k < share), "inputs behind the last are zeros", k);
        if (k >= share) continue;
        const auto place = (std::int64_t{n} * p.x_stride + l * share + k) * sizeof(T);
        expect(b.address(at) == x + place, "place of an input", b.address(at) - x - place);
      }
    }
  }
  const int padded = hopper::padded_inputs(p.in_features, sizeof(T));
  if constexpr (kSparse) {
    const Descriptor& e = made[1];
    expect(e.end() <= weight + weight_bytes, "metadata are read beyond their end", 0);
    const auto& layout_a = params.mainloop.layout_a;
    const auto& layout_e = params.mainloop.layout_e;
    const auto a_at = params.mainloop.tma_load_a.get_tma_tensor(layout_a.shape());
    const auto e_at = params.mainloop.tma_load_e.get_tma_tensor(layout_e.shape());
    const char* const metadata =
        weight + hopper::metadata_offset(p.out_features, p.in_features, sizeof(T));
    for (int l = 0; l < splits; ++l) {
      for (int m = 0; m < p.out_features; ++m) {
        for (int k = 0; k < steps * Linear::kTileIn; k += 4) {
          const int input = l * share + k;
          const auto at = numbers(a_at(m, k, l));
          const auto place = (std::int64_t{m} * padded + input) / 2 * sizeof(T);
          expect(a.holds(at), "values are out of bounds", k);
          expect(a.address(at) == weight + place, "place of a value", k);
          const auto nibble = hopper::metadata_nibble(m, input / 4, p.out_features, sizeof(T));
          if (nibble % 16 != 0) continue;  // the copy engine counts eight bytes
          const auto of_e = numbers(e_at(m, k, l));
          expect(e.holds(of_e), "metadata are out of bounds", k);
          expect(e.address(of_e) == metadata + nibble / 2, "place of metadata",
                 e.address(of_e) - metadata - nibble / 2);
        }
      }
    }
  } else {
    const auto a_at =
        params.mainloop.tma_load_a.get_tma_tensor(cute::make_shape(p.out_features, share, splits));
    for (int l = 0; l < splits; ++l) {
      for (int m = 0; m < p.out_features; ++m) {
        for (int k = 0; k < share; ++k) {
          const auto at = numbers(a_at(m, k, l));
          const auto place = (std::int64_t{m} * padded + l * share + k) * sizeof(T);
          expect(a.holds(at) && a.address(at) == weight + place, "place of a weight", k);
        }
      }
    }
  }
}

template <typename T, bool kSparse>
void check_tile(int tile, const SrLinear& p, std::int64_t x_bytes, std::int64_t weight_bytes) {
  switch (tile) {
    case 0:
      return check<T, kSparse, hopper::Tile128x256>(p, x_bytes, weight_bytes);
    case 1:
      return check<T, kSparse, hopper::Tile128x128>(p, x_bytes, weight_bytes);
    case 2:
      return check<T, kSparse, hopper::Tile64x128>(p, x_bytes, weight_bytes);
    default:
      return check<T, kSparse, hopper::Tile64x32>(p, x_bytes, weight_bytes);
  }
}

}  // namespace

// The driver's, with the rules of its documentation.
extern "C" CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type,
                                           cuuint32_t rank, void* address, const cuuint64_t* dims,
                                           const cuuint64_t* strides, const cuuint32_t* box,
                                           const cuuint32_t* element_strides,
                                           CUtensorMapInterleave interleave,
                                           CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                           CUtensorMapFloatOOBfill) {
  Descriptor d{static_cast<const char*>(address), int(rank), element_bytes(type)};
  expect(reinterpret_cast<std::uintptr_t>(map) % 64 == 0, "descriptor's alignment", 0);
  expect(reinterpret_cast<std::uintptr_t>(address) % 16 == 0, "address's alignment", 0);
  expect(rank >= 1 && rank <= 5, "rank", rank);
  expect(interleave == CU_TENSOR_MAP_INTERLEAVE_NONE, "interleave", interleave);
  d.box_bytes = d.element;
  for (int i = 0; i < d.rank; ++i) {
    d.dims[i] = std::int64_t(dims[i]);
    d.strides[i] = i == 0 ? d.element : std::int64_t(strides[i - 1]);
    d.box_bytes *= box[i];
    expect(dims[i] > 0 && dims[i] <= (std::uint64_t{1} << 32), "dimension", d.dims[i]);
    expect(i == 0 || (d.strides[i] % 16 == 0 && d.strides[i] >= 0), "stride", d.strides[i]);
    expect(i == 0 || d.strides[i] < (std::int64_t{1} << 40), "stride", d.strides[i]);
    expect(box[i] > 0 && box[i] <= 256, "box", box[i]);
    expect(element_strides[i] >= 1 && element_strides[i] <= 8, "step", element_strides[i]);
  }
  const int row = int(box[0] * d.element);
  expect(row % 16 == 0, "bytes of a box's row", row);
  const int widest = swizzle == CU_TENSOR_MAP_SWIZZLE_128B  ? 128
                     : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 64
                     : swizzle == CU_TENSOR_MAP_SWIZZLE_32B ? 32
                                                            : 1 << 30;
  expect(row <= widest, "bytes of a swizzled row", row);
  made.push_back(d);
  return CUDA_SUCCESS;
}

// 0, or 1 with what is wrong in `text`.
extern "C" int check_descriptors(int tile, int type, int sparse, const SrLinear* p,
                                 long long x_bytes, long long weight_bytes, char* text, int size) {
  faults.clear();
  if (type == SR_INT8) {
    sparse ? check_tile<std::int8_t, true>(tile, *p, x_bytes, weight_bytes)
           : check_tile<std::int8_t, false>(tile, *p, x_bytes, weight_bytes);
  } else {  // bf16 differs in wgmma's name alone
    sparse ? check_tile<cutlass::half_t, true>(tile, *p, x_bytes, weight_bytes)
           : check_tile<cutlass::half_t, false>(tile, *p, x_bytes, weight_bytes);
  }
  std::snprintf(text, size, "%s", faults.c_str());
  return faults.empty() ? 0 : 1;
}
