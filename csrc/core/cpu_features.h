// What this CPU and this operating system can run. All false on a machine that is not x86-64.
#pragma once

namespace sparse_runtime {

struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx_vnni = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool avx512_fp16 = false;
  bool amx_tile = false;
  bool amx_int8 = false;
  bool amx_bf16 = false;
};

// A feature counts only if the operating system saves the registers it needs (XCR0). On Linux,
// AMX also needs a permission per process (arch_prctl), which is not asked for here.
const CpuFeatures& cpu_features();

}  // namespace sparse_runtime
