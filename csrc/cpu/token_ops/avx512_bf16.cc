#include "core/panels.h"
#include "cpu/simd_headers.h"
#include "cpu/token_ops/kernels.h"

namespace sparse_runtime::token_ops {
namespace {

#include "cpu/simd.h"
#include "cpu/token_ops/ops.h"

}  // namespace

extern const Kernels kAvx512Bf16Kernels;
const Kernels kAvx512Bf16Kernels = {finish,       moments,       normalize, range,
                                    merge_ranges, merge_moments, quantize,  byte_sums,
                                    to_pairs,     embed,         to_rows,   from_rows};

}  // namespace sparse_runtime::token_ops
