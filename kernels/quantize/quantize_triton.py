"""The arithmetic of quantizing rows, bit for bit that of kernels/linear/reference.py.

Kernels that call these are launched with ``enable_fp_fusion=False``: a fused multiply and add would
round once where the reference rounds twice.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal float32
HALF_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2**23: a float32 of that size has no fraction
HALF_EVEN_BITS = tl.constexpr(0x4B400000)
EXACT = tl.constexpr(4194304.0)  # 2**22, the largest magnitude that HALF_EVEN rounds
NAN_BITS = tl.constexpr(0x7FC00000)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def round_half_even(x):
    """Nearest integer of float32 with magnitudes up to 2**22; larger ones become 2**22."""
    x = tl.minimum(tl.maximum(x, -EXACT), EXACT)
    return (x + HALF_EVEN) - HALF_EVEN


@triton.jit
def nearest_integer(x):
    """Nearest int32, ties to even, of float32 with magnitudes up to 2**22.

    The low bits of the sum are the integer: two fast instructions for a slow conversion.
    """
    return (x + HALF_EVEN).to(tl.int32, bitcast=True) - HALF_EVEN_BITS


@triton.jit
def quantize_static(x, scale, zero, low, high):
    """``clamp(round_half_even(x / scale) + zero, low, high)`` as int32; NaN becomes zero.

    The quotient is rounded as a division rounds it (Markstein, IA-64 and Elementary Functions,
    2000): the product with the scale's inverse, made exact by two steps of its remainder. What is
    only of the scale is computed once, and both are multiplied by a power of two first, which
    brings the scale to 1..2: nothing underflows, and the bounds let nothing overflow.
    """
    exponent = (scale.to(tl.int32, bitcast=True) >> 23) & 0xFF
    power = (tl.maximum(254 - exponent, 1) << 23).to(tl.float32, bitcast=True)
    scale *= power
    inverse = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    bound = EXACT * scale
    x = tl.where(x == x, x * power, 0.0)
    x = tl.minimum(tl.maximum(x, -bound), bound)
    quotient = x * inverse
    quotient = tl.fma(tl.fma(-quotient, scale, x), inverse, quotient)
    quotient = tl.fma(tl.fma(-quotient, scale, x), inverse, quotient)
    return tl.minimum(tl.maximum(nearest_integer(quotient) + zero, low), high)


@triton.jit
def magnitude_below(x):
    """How far float32 x lies below 0, as the bits of a float32, which order as integers; NaN is
    the largest."""
    return tl.where(x == x, tl.maximum(-x, 0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF, NAN_BITS)


@triton.jit
def magnitude_above(x):
    """How far float32 x lies above 0, as :func:`magnitude_below`."""
    return tl.where(x == x, tl.maximum(x, 0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF, NAN_BITS)


@triton.jit
def reach(x, SCHEME: tl.constexpr):
    """How far rows of float32 x lie below and above 0, for :func:`scales_of`.

    A symmetric scheme asks for the farther alone, which is returned as above.
    """
    if SCHEME == "asymmetric":
        below = tl.max(magnitude_below(x), axis=1)
        above = tl.max(magnitude_above(x), axis=1)
    else:
        # Without its sign, a NaN is larger than every number as an integer too.
        above = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
        below = tl.zeros_like(above)
    return below, above


@triton.jit
def scales_of(below, above, SCHEME: tl.constexpr):
    """The quantizers of rows that reach from ``-below`` to ``above`` (bits of float32).

    Returns:
        (float32 scale; float32 factor by which rows are multiplied, or, for "full_range", divided;
        int32 stored zero point)
    """
    if SCHEME == "asymmetric":
        below = below.to(tl.float32, bitcast=True)
        above = above.to(tl.float32, bitcast=True)
        finite = (below < INFINITY) & (above < INFINITY)
        scale = tl.div_rn(above, 255.0) + tl.div_rn(below, 255.0)
        scale = tl.where(scale < TINY, TINY, scale)
        scale = tl.where((below == 0) & (above == 0), 1.0, scale)
        factor = tl.where(finite, tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale), 0.0)
        zero = round_half_even(tl.where(finite, below * factor, 0.0))
        zero = tl.minimum(tl.maximum(zero, 0.0), 255.0).to(tl.int32) - 128
        # The reference's row of zeros with zero point 0, stored as -128.
        zero = tl.where(finite, zero, -128)
        scale = tl.where(finite, scale, float("nan"))
    else:
        tl.static_assert(SCHEME == "symmetric" or SCHEME == "full_range", "an unknown scheme")
        largest = tl.maximum(below, above).to(tl.float32, bitcast=True)
        if SCHEME == "symmetric":
            clamped = tl.where(largest < 127.0 * TINY, 127.0 * TINY, largest)
            factor = tl.div_rn(tl.full(largest.shape, 127.0, tl.float32), clamped)
            scale = tl.div_rn(clamped, 127.0)
        else:
            scale = tl.div_rn(largest, 127.5)
            scale = tl.where(scale < TINY, TINY, scale)
            factor = scale
        scale = tl.where(largest == 0, 1.0, scale)
        factor = tl.where(largest == 0, 1.0, factor)
        zero = tl.zeros_like(below)
    return scale, factor, zero


@triton.jit
def quantize_dynamic(x, factor, zero, SCHEME: tl.constexpr):
    """float32 x with :func:`scales_of` its row, broadcast to it -> stored int8."""
    scaled = tl.div_rn(x, factor) if SCHEME == "full_range" else x * factor
    scaled = tl.where(scaled == scaled, scaled, 0.0)
    scaled = tl.minimum(tl.maximum(scaled, -EXACT), EXACT)
    q = nearest_integer(scaled) + zero
    low: tl.constexpr = -127 if SCHEME == "symmetric" else -128
    return tl.minimum(tl.maximum(q, low), 127).to(tl.int8)
