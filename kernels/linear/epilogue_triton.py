"""From sums to results: what every fused linear kernel does behind its products."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from ..quantize.quantize_triton import quantize_static

HALF_LOG2_E = tl.constexpr(0.7213475204444817)
NO_TAIL = tl.constexpr(14.0)  # beyond it float32 has none of the normal distribution
SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)


@triton.jit
def gelu(x):
    """``x Phi(x)``, the erf form, as ``max(x, 0) - |x| Phi(-|x|)``: small where x is far below 0.

    ``Phi(-z) = exp(-z^2 / 2) P(t)`` with ``t = 1 / (1 + 0.3046 z)``, and a polynomial P, fitted for
    the least relative error (9e-8). Half the instructions of a general erf, and of large tiles with
    few inputs the erf would be the larger part. -inf gives 0, NaN stays.
    """
    z = tl.minimum(tl.abs(x), NO_TAIL)
    root = tl.rsqrt(tl.fma(z, 0.3045983748416035, 1.0))
    t = root * root
    tail = tl.fma(t, 0.036764975637197495, -0.153919979929924)
    tail = tl.fma(t, tail, 0.1883099377155304)
    tail = tl.fma(t, tail, -0.040030285716056824)
    tail = tl.fma(t, tail, 0.12202651798725128)
    tail = tl.fma(t, tail, 0.10302476584911346)
    tail = tl.fma(t, tail, 0.12234698981046677)
    tail = tl.fma(t, tail, 0.12147712707519531) * t
    tail *= tl.exp2(z * z * -HALF_LOG2_E)
    above = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.fma(-z, tail, above)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """An activation function of ``ACTIVATIONS`` (reference.py), or "none", of float32."""
    if ACTIVATION == "gelu":
        x = gelu(x)
    elif ACTIVATION == "gelu_new":
        # 0.5 * (1 + tanh(u)) is sigmoid(2 u).
        x = x * tl.sigmoid(2.0 * SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)  # NaN stays
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "tanh":
        x = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    else:
        tl.static_assert(ACTIVATION == "none", "an unknown activation function")
    return x


@triton.jit
def dequantize(acc, x_sum, rows, columns, tokens, features, x, epilogue):
    """Sums of integer products -> float32, as ``integer_product`` of reference.py.

    Args:
        acc: int32 [rows, columns], sums of stored values times weights.
        x_sum: int32 [rows], sums of the stored values; read where weights have zero points.
        rows: int32, which tokens.
        columns: int32, which outputs.
        tokens: number of all rows.
        features: number of all outputs.
        x: the input, ``Quantized``.
        epilogue: an ``Epilogue``.
    """
    live, wanted = rows < tokens, columns < features
    if epilogue.weight_zero is not None:
        w_zero = tl.load(epilogue.weight_zero + columns, mask=wanted, other=0)
        acc -= x_sum[:, None] * w_zero[None, :]
    if x.zero is not None:
        zero = tl.load(x.zero + rows * x.stride, mask=live, other=0)
        w_sum = tl.load(epilogue.weight_sum + columns, mask=wanted, other=0)
        acc -= zero[:, None] * w_sum[None, :]
    scale = tl.load(x.scale + rows * x.stride, mask=live, other=0.0)
    w_scale = tl.load(epilogue.weight_scale + columns, mask=wanted, other=0.0)
    return acc.to(tl.float32) * scale[:, None] * w_scale[None, :]


@triton.jit
def end(y, rows, columns, tokens, features, epilogue, ACTIVATION: tl.constexpr):
    """Bias, requantization, activation function and residual of float32 [rows, columns]."""
    wanted = columns < features
    if epilogue.bias is not None:
        y += tl.load(epilogue.bias + columns, mask=wanted, other=0.0)[None, :]
    if epilogue.out_scale is not None:
        scale = tl.load(epilogue.out_scale + columns, mask=wanted, other=0.0)[None, :]
        zero = tl.load(epilogue.out_zero + columns, mask=wanted, other=0)[None, :]
        low = tl.load(epilogue.out_low + columns, mask=wanted, other=0)[None, :]
        high = tl.load(epilogue.out_high + columns, mask=wanted, other=0)[None, :]
        q = quantize_static(y, tl.where(scale == 0, 1.0, scale), zero, low, high)
        y = tl.where(scale == 0, y, (q - zero).to(tl.float32) * scale)
    y = activate(y, ACTIVATION)
    if epilogue.residual is not None:
        inside = (rows < tokens)[:, None] & wanted[None, :]
        at = rows.to(tl.int64)[:, None] * epilogue.residual_stride + columns[None, :]
        y += tl.load(epilogue.residual + at, mask=inside, other=0.0).to(tl.float32)
    return y
