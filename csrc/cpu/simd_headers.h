// What cpu/simd.h needs from outside of the anonymous namespace that it is included in.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
