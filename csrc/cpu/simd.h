// Vectors of 32-bit lanes as wide as this translation unit's instruction set has them. To be
// included inside an anonymous namespace, after <immintrin.h> on x86 (cpu/simd_headers.h): nothing
// here may be merged with another unit's copy.
//
// Compiler vector types, so that one source serves every instruction set; intrinsics only where a
// single instruction has no such spelling.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float F __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t I __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef std::uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef std::uint16_t Words __attribute__((vector_size(2 * kLanes)));

#define SIMD_INLINE inline __attribute__((always_inline))

// Arrays of vectors become registers only where every loop over them is unrolled.
#define UNROLL _Pragma("GCC unroll 16")

template <typename Vec, typename Element>
SIMD_INLINE Vec load(const Element* from) {
  Vec v;
  __builtin_memcpy(&v, from, sizeof(Vec));
  return v;
}

template <typename Vec, typename Element>
SIMD_INLINE void store(Element* to, const Vec& v) {
  __builtin_memcpy(to, &v, sizeof(Vec));
}

// Four indices or offsets in one load: of those, two a cycle are what binds a sparse product.
SIMD_INLINE std::uint64_t four_at(const std::uint16_t* index) {
  std::uint64_t four;
  __builtin_memcpy(&four, index, sizeof(four));
  return four;
}

SIMD_INLINE std::int64_t one_of(std::uint64_t four, int i) {
  return static_cast<std::int64_t>(four >> (16 * i) & 0xffff);
}

SIMD_INLINE U spread(std::int32_t word) {
#if defined(__AVX512F__)
  return (U)_mm512_set1_epi32(word);
#else
  return U{} + static_cast<std::uint32_t>(word);
#endif
}

SIMD_INLINE U spread_at(const void* from) {
  std::int32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  return spread(word);
}

// Four words that follow each other, to be spread one by one. Loads bind sparse products that do
// not shuffle: the widest vectors are made of one load and shuffles.
struct FourWords {
#if defined(__AVX512F__)
  __m512i all;  // in each 128 bits

  SIMD_INLINE explicit FourWords(const void* from) {
    __m128i four;
    __builtin_memcpy(&four, from, sizeof(four));
    all = _mm512_broadcast_i32x4(four);
  }
  SIMD_INLINE U operator[](int i) const {
    switch (i) {
      case 0:
        return (U)_mm512_shuffle_epi32(all, _MM_PERM_AAAA);
      case 1:
        return (U)_mm512_shuffle_epi32(all, _MM_PERM_BBBB);
      case 2:
        return (U)_mm512_shuffle_epi32(all, _MM_PERM_CCCC);
      default:
        return (U)_mm512_shuffle_epi32(all, _MM_PERM_DDDD);
    }
  }
#else
  const char* at;

  SIMD_INLINE explicit FourWords(const void* from) : at(static_cast<const char*>(from)) {}
  SIMD_INLINE U operator[](int i) const { return spread_at(at + 4 * i); }
#endif
};

SIMD_INLINE F splat(float value) {
#if defined(__AVX512F__)
  return (F)_mm512_set1_ps(value);
#else
  return F{} + value;
#endif
}

// a * b + c, in one rounding where the instruction set can.
SIMD_INLINE F fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// The second operand where the comparison with the first is false, as with NaN.
SIMD_INLINE F least(F v, F low) {
#if defined(__AVX512F__)
  return (F)_mm512_min_ps((__m512)v, (__m512)low);
#elif defined(__AVX2__)
  return (F)_mm256_min_ps((__m256)v, (__m256)low);
#else
  return v < low ? v : low;
#endif
}

SIMD_INLINE F most(F v, F high) {
#if defined(__AVX512F__)
  return (F)_mm512_max_ps((__m512)v, (__m512)high);
#elif defined(__AVX2__)
  return (F)_mm256_max_ps((__m256)v, (__m256)high);
#else
  return v > high ? v : high;
#endif
}

// The nearest integer, ties to even, of |x| <= 2^22.
SIMD_INLINE F round_even(F x) {
#if defined(__AVX512F__)
  return (F)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const F shift = splat(12582912.0f);  // 1.5 * 2^23 leaves no bits for a fraction
  return (x + shift) - shift;
#endif
}

#if defined(__AVX2__)
// The same for any x.
SIMD_INLINE F round_any(F x) {
#if defined(__AVX512F__)
  return round_even(x);
#else
  return (F)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
}

// Not where one is NaN.
SIMD_INLINE bool all_below(F x, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)splat(bound), _CMP_NLT_UQ) == 0;
#else
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)splat(bound), _CMP_NLT_UQ)) == 0;
#endif
}
#endif

SIMD_INLINE I to_int(F x) {
#if defined(__AVX512F__)
  return (I)_mm512_cvttps_epi32((__m512)x);
#else
  return __builtin_convertvector(x, I);
#endif
}

// The nearest integer, ties to even (the rounding mode that every process begins with), of
// |x| <= 2^22.
SIMD_INLINE I to_nearest(F x) {
#if defined(__AVX512F__)
  return (I)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (I)_mm256_cvtps_epi32((__m256)x);
#else
  return to_int(round_even(x));
#endif
}

SIMD_INLINE F to_float(I x) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtepi32_ps((__m512i)x);
#else
  return __builtin_convertvector(x, F);
#endif
}

SIMD_INLINE F square_root(F x) {
#if defined(__AVX512F__)
  return (F)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (F)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// e^x for x <= 88, 0 below -87.3; relative error below 2e-7. Range reduction by ln 2 in two parts,
// then a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2] (Taylor, remainder 1.6e-7 * r).
SIMD_INLINE F exponential(F x) {
  const F lowest = splat(-87.33654f);
  const I alive = x > lowest;
  x = most(x, lowest);
  const F n = round_even(x * 1.44269504f);
  F r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  F p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
#if defined(__AVX512F__)
  const F y = (F)_mm512_scalef_ps((__m512)p, (__m512)n);
  return (F)_mm512_maskz_mov_ps(_mm512_movepi32_mask((__m512i)alive), (__m512)y);
#else
  const F y = p * (F)((to_int(n) + 127) << 23);
  return (F)((I)y & alive);
#endif
}

// Static quantization: levels are integers, counted from the zero point.
struct Grid {
  F scale;
  F inverse;  // 1 / scale
  F low;
  F high;
};

SIMD_INLINE Grid grid_of(float scale, float low, float high) {
  return {splat(scale), splat(1.0f / scale), splat(low), splat(high)};
}

SIMD_INLINE F divided_level(const Grid& to, F x) {
  F quotient = x / to.scale;
  quotient = (F)((I)quotient & (I)(quotient == quotient));
  return round_even(least(most(quotient, to.low), to.high));
}

// round_even(x / scale) within the bounds, or -0; NaN becomes 0. The quotient is the reference's,
// to the bit: a product with the inverse is off by less than 2^-12 up to 300, which is beyond every
// level (three roundings of 2^-24, or 2^-21 where the inverse is no normal number), so only what
// comes closer to a tie is divided.
SIMD_INLINE F nearest_level(const Grid& to, F x) {
#if defined(__AVX2__)
  const F product = x * to.inverse;
  const F nearest = round_any(product);
  const F off = (F)((I)(product - nearest) & 0x7fffffff);
  if (__builtin_expect(all_below(off, 0.5f - 0x1p-12f), 1)) {  // no NaN either
    return least(most(nearest, to.low), to.high);
  }
#endif
  return divided_level(to, x);
}

// Float bits -> bf16 in the low half of each lane, nearest even; NaN stays NaN.
SIMD_INLINE U to_bf16(F x) {
  const U bits = (U)x;
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return x == x ? rounded : (bits >> 16) | 0x40u;
}

// Both as bf16, the first in the low half of each lane. (The instruction takes denormals for zero.)
SIMD_INLINE U to_pair(F even, F odd) {
#if defined(__AVX512BF16__)
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (U)_mm512_permutexvar_epi16(order, halves);
#else
  return to_bf16(even) | to_bf16(odd) << 16;
#endif
}

SIMD_INLINE Words to_halves(F x) {
#if defined(__AVX512BF16__)
  return (Words)_mm512_cvtneps_pbh((__m512)x);
#else
  return __builtin_convertvector(to_bf16(x), Words);
#endif
}
