#include "core/panels.h"
#include "cpu/panel_attention/kernels.h"
#include "cpu/simd_headers.h"

namespace sparse_runtime::panel_attention {
namespace {

#include "cpu/simd.h"

// Reads what the one before defines.
#include "cpu/panel_attention/attend.h"

}  // namespace

extern const Kernels kGenericKernels;
const Kernels kGenericKernels = {attend_float, nullptr};

}  // namespace sparse_runtime::panel_attention
