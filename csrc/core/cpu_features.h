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
  bool avx512_vbmi2 = false;
  bool avx512_fp16 = false;
  bool amx_tile = false;
  bool amx_int8 = false;
  bool amx_bf16 = false;
  bool hypervisor = false;  // a virtual machine, whose cores may move
};

// An instruction set counts only if the operating system saves the registers it needs (XCR0).
const CpuFeatures& cpu_features();

// Asks Linux, once, for this process's permission to use AMX tiles (arch_prctl,
// ARCH_REQ_XCOMP_PERM); children inherit it. False where it is refused or there is no such call.
bool amx_permitted();

}  // namespace sparse_runtime
