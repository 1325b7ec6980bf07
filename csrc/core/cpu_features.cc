#include "core/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sparse_runtime {
namespace {

#if defined(__x86_64__)

// State components of XCR0 (Intel SDM volume 1, section 13.1).
constexpr std::uint64_t kXcr0Avx = 0x6;      // XMM, YMM
constexpr std::uint64_t kXcr0Avx512 = 0xe6;  // and opmask, ZMM_Hi256, Hi16_ZMM
constexpr std::uint64_t kXcr0Amx = 0x60000;  // TILECFG, TILEDATA

std::uint64_t read_xcr0() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

bool bit(unsigned word, int index) {
  return ((word >> index) & 1u) != 0;
}

CpuFeatures detect() {
  CpuFeatures f;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const unsigned leaf1_c = c;
  const bool has_osxsave = bit(leaf1_c, 27);
  const std::uint64_t xcr0 = has_osxsave ? read_xcr0() : 0;
  const bool avx_state = (xcr0 & kXcr0Avx) == kXcr0Avx && bit(leaf1_c, 28);
  const bool avx512_state = avx_state && (xcr0 & kXcr0Avx512) == kXcr0Avx512;
  const bool amx_state = (xcr0 & kXcr0Amx) == kXcr0Amx;

  f.hypervisor = bit(leaf1_c, 31);
  f.fma = avx_state && bit(leaf1_c, 12);
  f.f16c = avx_state && bit(leaf1_c, 29);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2 = avx_state && bit(b, 5);
  f.avx512f = avx512_state && bit(b, 16);
  f.avx512dq = avx512_state && bit(b, 17);
  f.avx512bw = avx512_state && bit(b, 30);
  f.avx512vl = avx512_state && bit(b, 31);
  f.avx512_vnni = avx512_state && bit(c, 11);
  f.avx512_vbmi2 = avx512_state && bit(c, 6);
  f.avx512_fp16 = avx512_state && bit(d, 23);
  f.amx_bf16 = amx_state && bit(d, 22);
  f.amx_tile = amx_state && bit(d, 24);
  f.amx_int8 = amx_state && bit(d, 25);
  const unsigned last_subleaf = a;
  if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    f.avx_vnni = avx_state && bit(a, 4);
    f.avx512_bf16 = avx512_state && bit(a, 5);
  }
  return f;
}

#else

CpuFeatures detect() {
  return {};
}

#endif

}  // namespace

bool amx_permitted() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // the component's number in XCR0
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
#else
  return false;
#endif
}

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace sparse_runtime
