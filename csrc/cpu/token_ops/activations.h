// Activation functions over vectors of any width. To be included within the unit's anonymous
// namespace, by ops.h.

// x * Phi(x): GELU in its erf form. Phi(-t) ~ P(t)^16 for 0 <= t <= 6, or P(t)^8 where the result
// is quantized; docs/kernels/token_ops.md describes the fits and their errors (3e-7 and 1.7e-6).
template <bool kCoarse>
SIMD_INLINE F gelu(F x) {
  const F size = (F)((I)x & 0x7fffffff);
  const F t = least(size, splat(6.0f));  // NaN: 6
  F p;
  if (kCoarse) {
    p = splat(-0x1.906f88p-13f);
    p = fma(p, t, splat(0x1.fc766ap-10f));
    p = fma(p, t, splat(-0x1.227d70p-10f));
    p = fma(p, t, splat(-0x1.03dd24p-5f));
    p = fma(p, t, splat(-0x1.76bf3cp-4f));
    p = fma(p, t, splat(0x1.d5817ap-1f));
  } else {
    p = splat(-0x1.003a3ap-25f);
    p = fma(p, t, splat(0x1.e45960p-21f));
    p = fma(p, t, splat(-0x1.2f1c3cp-17f));
    p = fma(p, t, splat(-0x1.f74714p-19f));
    p = fma(p, t, splat(0x1.3661c2p-11f));
    p = fma(p, t, splat(-0x1.4c651cp-10f));
    p = fma(p, t, splat(-0x1.247a16p-6f));
    p = fma(p, t, splat(-0x1.87352ap-5f));
    p = fma(p, t, splat(0x1.ea4afcp-1f));
    p = p * p;
  }
  p = p * p;
  p = p * p;
  p = p * p;
  // x Phi(x) = max(x, 0) - |x| Phi(-|x|); beyond 6 the second term stays at 6e-9. NaN, the second
  // operand of the maximum, stays.
  return fma(-t, p, most(F{}, x));
}

// tanh(x) = sign(x) * (1 - 2 / (e^2|x| + 1)); below 0.25 an odd Taylor polynomial, where that
// difference would lose digits.
SIMD_INLINE F hyperbolic_tangent(F x) {
  const F size = (F)((I)x & 0x7fffffff);
  const F t = least(size, splat(10.0f));
  const F far = 1.0f - 2.0f / (exponential(t + t) + 1.0f);
  const F square = t * t;
  F near = splat(62.0f / 2835.0f);
  near = fma(near, square, splat(-17.0f / 315.0f));
  near = fma(near, square, splat(2.0f / 15.0f));
  near = fma(near, square, splat(-1.0f / 3.0f));
  near = fma(near * square, t, t);
  const F y = t < 0.25f ? near : far;
  const F signed_y = (F)((I)y | ((I)x & ~0x7fffffff));
  return x == x ? signed_y : x;
}

SIMD_INLINE F sigmoid(F x) {
  // The exponential's argument stays in range; beyond, the quotient is 0 or 1 to float precision.
  const F t = least(most(-x, splat(-80.0f)), splat(80.0f));
  return 1.0f / (1.0f + exponential(t));
}

template <Activation kActivation, bool kCoarse>
SIMD_INLINE F activate(F v) {
  if (kActivation == Activation::kRelu) return v < 0.0f ? F{} : v;  // keeps NaN
  if (kActivation == Activation::kGelu) return gelu<kCoarse>(v);
  if (kActivation == Activation::kTanh) return hyperbolic_tangent(v);
  if (kActivation == Activation::kSilu) return v * sigmoid(v);
  if (kActivation == Activation::kGeluTanh) {
    // (1 + tanh(x)) / 2 is the sigmoid of 2 x; x = sqrt(2 / pi) (v + 0.044715 v^3).
    return v * sigmoid(v * fma(v * v, splat(0.0713548162726f), splat(1.59576912161f)));
  }
  return v;
}
