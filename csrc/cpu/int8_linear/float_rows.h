// The float side of the family: dequantize + bias + activation + residual, and quantization of
// rows. Included by each instruction set's translation unit after it defines kVectorFloats, and
// compiled there with that unit's flags; all of it lives in an anonymous namespace so that the
// linker cannot merge one unit's code into another's.
//
// Compiler vector types instead of intrinsics: one source, and since every operation is a single
// IEEE operation (no contraction, no reassociation) every instruction set gives the same bits.

namespace sparse_runtime::int8_linear {
namespace {

typedef float FloatVec __attribute__((vector_size(4 * kVectorFloats)));
typedef std::int32_t IntVec __attribute__((vector_size(4 * kVectorFloats)));
typedef std::uint32_t UnsignedVec __attribute__((vector_size(4 * kVectorFloats)));
typedef std::uint8_t ByteVec __attribute__((vector_size(kVectorFloats)));

constexpr int kStep = kVectorFloats;

#define SPARSE_RUNTIME_INLINE inline __attribute__((always_inline))

template <typename Vec, typename Element>
SPARSE_RUNTIME_INLINE Vec load(const Element* from) {
  Vec v;
  __builtin_memcpy(&v, from, sizeof(Vec));
  return v;
}

template <typename Vec, typename Element>
SPARSE_RUNTIME_INLINE void store(Element* to, const Vec& v) {
  __builtin_memcpy(to, &v, sizeof(Vec));
}

SPARSE_RUNTIME_INLINE FloatVec splat(float value) {
  return FloatVec{} + value;
}

SPARSE_RUNTIME_INLINE FloatVec absolute(FloatVec x) {
  return (FloatVec)((IntVec)x & 0x7fffffff);
}

// x * Phi(x), Phi the normal distribution function: GELU in its erf form.
//
// Phi(-t) ~ P(t)^16 for 0 <= t < 6 and 0 beyond, where |x| * Phi(-|x|) < 6e-9. The sixteenth root
// is nearly a straight line, so a polynomial of degree 8 reaches 1e-7 without a division or an
// exponential. docs/kernels/int8_linear.md describes the fit and its error.
SPARSE_RUNTIME_INLINE FloatVec gelu(FloatVec x) {
  const FloatVec end = splat(6.0f);
  FloatVec t = absolute(x);
  const IntVec inside = t < end;
  t = t > end ? end : t;
  FloatVec p = splat(-0x1.003a3ap-25f);
  p = p * t + 0x1.e45960p-21f;
  p = p * t + -0x1.2f1c3cp-17f;
  p = p * t + -0x1.f74714p-19f;
  p = p * t + 0x1.3661c2p-11f;
  p = p * t + -0x1.4c651cp-10f;
  p = p * t + -0x1.247a16p-6f;
  p = p * t + -0x1.87352ap-5f;
  p = p * t + 0x1.ea4afcp-1f;
  p = p * p;
  p = p * p;
  p = p * p;
  p = p * p;
  // NaN is not inside: the final product with x keeps it.
  const FloatVec below = (FloatVec)((IntVec)p & inside);
  return x * (x < 0.0f ? below : 1.0f - below);
}

template <Activation kActivation>
SPARSE_RUNTIME_INLINE void finish_vector(const Finish& row, int j) {
  // Unsigned: products and differences beyond int32 cancel modulo 2^32.
  UnsignedVec sum = load<UnsignedVec>(row.acc + j);
  if (row.zero_point != 0) {
    const auto zero_point = static_cast<std::uint32_t>(row.zero_point);
    sum = sum - load<UnsignedVec>(row.row_sums + j) * zero_point;
  }
  FloatVec v = __builtin_convertvector((IntVec)sum, FloatVec);
  v = v * row.x_scale * load<FloatVec>(row.w_scale + j);
  if (row.bias != nullptr) v = v + load<FloatVec>(row.bias + j);
  if (kActivation == Activation::kRelu) v = v < 0.0f ? FloatVec{} : v;  // keeps NaN
  if (kActivation == Activation::kGelu) v = gelu(v);
  if (row.residual != nullptr) v = v + load<FloatVec>(row.residual + j);
  store(row.out + j, v);
}

// The last columns of a row, through padded copies: nothing outside the arrays is touched.
template <Activation kActivation>
void finish_tail(const Finish& row, int j) {
  const std::size_t bytes = sizeof(float) * static_cast<std::size_t>(row.columns - j);
  float w_scale[kStep] = {};
  float bias[kStep] = {};
  float residual[kStep] = {};
  float out[kStep];
  Finish padded = row;
  padded.acc = row.acc + j;            // the accumulator row is always kTileColumns long
  padded.row_sums = row.row_sums + j;  // and the sums are padded to whole panels
  __builtin_memcpy(w_scale, row.w_scale + j, bytes);
  padded.w_scale = w_scale;
  if (row.bias != nullptr) {
    __builtin_memcpy(bias, row.bias + j, bytes);
    padded.bias = bias;
  }
  if (row.residual != nullptr) {
    __builtin_memcpy(residual, row.residual + j, bytes);
    padded.residual = residual;
  }
  padded.out = out;
  finish_vector<kActivation>(padded, 0);
  __builtin_memcpy(row.out + j, out, bytes);
}

template <Activation kActivation>
void finish_row(const Finish& row) {
  int j = 0;
  for (; j + kStep <= row.columns; j += kStep) finish_vector<kActivation>(row, j);
  if (j < row.columns) finish_tail<kActivation>(row, j);
}

void finish(const Finish& row) {
  switch (row.activation) {
    case Activation::kNone:
      return finish_row<Activation::kNone>(row);
    case Activation::kRelu:
      return finish_row<Activation::kRelu>(row);
    case Activation::kGelu:
      return finish_row<Activation::kGelu>(row);
  }
}

// Rounds to the nearest integer, ties to even, for |x| <= 2^22: adding 1.5 * 2^23 leaves no bits
// for a fraction.
SPARSE_RUNTIME_INLINE IntVec round_to_int(FloatVec x) {
  const float shift = 12582912.0f;
  return __builtin_convertvector((x + shift) - shift, IntVec);
}

SPARSE_RUNTIME_INLINE FloatVec clamp(FloatVec x, float low, float high) {
  x = x < low ? splat(low) : x;
  return x > high ? splat(high) : x;
}

SPARSE_RUNTIME_INLINE FloatVec nan_to_zero(FloatVec x) {
  return (FloatVec)((IntVec)x & (x == x));
}

// Applies convert(FloatVec) -> IntVec in 0..255 to a row, the last elements through a padded copy.
template <typename Convert>
SPARSE_RUNTIME_INLINE void quantize_vectors(const float* x, std::int64_t k, std::uint8_t* q,
                                            const Convert& convert) {
  std::int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    store(q + i, __builtin_convertvector(convert(load<FloatVec>(x + i)), ByteVec));
  }
  if (i == k) return;
  float padded[kStep] = {};
  std::uint8_t bytes[kStep];
  __builtin_memcpy(padded, x + i, sizeof(float) * static_cast<std::size_t>(k - i));
  store(bytes, __builtin_convertvector(convert(load<FloatVec>(padded)), ByteVec));
  __builtin_memcpy(q + i, bytes, static_cast<std::size_t>(k - i));
}

// The largest |x|; NaN if any element is. Compared as integers: the bit patterns of non-negative
// floats are ordered, with infinity and then NaN above all numbers.
float largest_magnitude(const float* x, std::int64_t k) {
  IntVec most = {};
  std::int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    const IntVec bits = load<IntVec>(x + i) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  std::int32_t best = 0;
  for (int lane = 0; lane < kStep; ++lane) best = most[lane] > best ? most[lane] : best;
  for (; i < k; ++i) {
    std::int32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fffffff;
    best = bits > best ? bits : best;
  }
  float result;
  __builtin_memcpy(&result, &best, sizeof(result));
  return result;
}

float quantize_row(const float* x, std::int64_t k, std::uint8_t* q) {
  // 127 times the smallest normal float: keeps scale normal and its inverse finite.
  const float least = 127.0f * 0x1p-126f;
  const float amax = largest_magnitude(x, k);
  const float clamped = amax < least ? least : amax;
  const float inverse = 127.0f / clamped;
  quantize_vectors(x, k, q, [inverse](FloatVec v) __attribute__((always_inline)) {
    // Only a row with NaN or infinity makes NaN here; its scale makes the output NaN. Nothing else
    // leaves -127..127: two roundings move 127 by less than half.
    return round_to_int(nan_to_zero(v * inverse)) + 128;
  });
  return amax == 0.0f ? 1.0f : clamped / 127.0f;
}

struct Range {
  float low;   // at most 0
  float high;  // at least 0
};

// Of a row without NaN.
Range range_with_zero(const float* x, std::int64_t k) {
  FloatVec lows = {};
  FloatVec highs = {};
  std::int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    const FloatVec v = load<FloatVec>(x + i);
    lows = v < lows ? v : lows;
    highs = v > highs ? v : highs;
  }
  Range range = {0.0f, 0.0f};
  for (int lane = 0; lane < kStep; ++lane) {
    range.low = lows[lane] < range.low ? lows[lane] : range.low;
    range.high = highs[lane] > range.high ? highs[lane] : range.high;
  }
  for (; i < k; ++i) {
    range.low = x[i] < range.low ? x[i] : range.low;
    range.high = x[i] > range.high ? x[i] : range.high;
  }
  return range;
}

float quantize_row_asymmetric(const float* x, std::int64_t k, std::uint8_t* q,
                              std::uint8_t* zero_point) {
  const float infinity = __builtin_inff();
  if (!(largest_magnitude(x, k) < infinity)) {
    // The sums are 0 and the scale makes every output of the row NaN.
    __builtin_memset(q, 0, static_cast<std::size_t>(k));
    *zero_point = 0;
    return infinity - infinity;
  }
  const Range range = range_with_zero(x, k);
  // Divided one by one, for high - low may overflow.
  const float wanted = range.high / 255.0f - range.low / 255.0f;
  const float least = 0x1p-126f;  // keeps the scale normal and its inverse finite
  const float scale = range.low == range.high ? 1.0f : wanted < least ? least : wanted;
  const float inverse = 1.0f / scale;
  const float shift = 12582912.0f;  // as in round_to_int
  const float zero = (-range.low * inverse + shift) - shift;
  const float offset = zero > 255.0f ? 255.0f : zero;
  const int whole = static_cast<int>(offset);
  quantize_vectors(x, k, q, [=](FloatVec v) __attribute__((always_inline)) {
    // The bounds are integers, so clamping before rounding is the same as after it.
    return round_to_int(clamp(v * inverse, -offset, 255.0f - offset)) + whole;
  });
  *zero_point = static_cast<std::uint8_t>(whole);
  return scale;
}

void quantize_row_static(const float* x, std::int64_t k, float scale, int zero_point, int low,
                         int high, std::uint8_t* q) {
  const float least = static_cast<float>(low - zero_point);
  const float most = static_cast<float>(high - zero_point);
  quantize_vectors(x, k, q, [=](FloatVec v) __attribute__((always_inline)) {
    // The bounds are integers, so clamping before rounding is the same as after it.
    return round_to_int(clamp(nan_to_zero(v / scale), least, most)) + zero_point;
  });
}

#undef SPARSE_RUNTIME_INLINE

}  // namespace
}  // namespace sparse_runtime::int8_linear
