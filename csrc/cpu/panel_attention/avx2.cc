#include "core/panels.h"
#include "cpu/panel_attention/int8_memory.h"
#include "cpu/panel_attention/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::panel_attention {
namespace {

#include "cpu/simd.h"

// Each reads what those before define.
#include "cpu/panel_attention/attend.h"
#include "cpu/panel_attention/int8.h"

}  // namespace

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = {attend_float, nullptr, attend_int8};

}  // namespace sparse_runtime::panel_attention
