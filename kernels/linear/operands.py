"""What fused kernels read and write beside a weight: tensors in named tuples, as Triton takes them.

The same tuples go from Python to the kernels and on to the functions that they share. A field that
is None costs nothing: Triton compiles a kernel without it. No field may be called ``values`` or
``type``: Triton's own tuples have attributes of these names.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

UINT8_OFFSET = 128
"""uint8 values are stored as int8: less this much, their zero points likewise."""

SCHEMES: tuple[str, ...] = ("none", "static", "symmetric", "full_range", "asymmetric")
"""How rows are quantized: not at all, by one given scale, or a token each from its own range
(``quantize_rows``, ``quantize_rows_full_range``, ``quantize_rows_asymmetric`` of reference.py)."""

DYNAMIC_SCHEMES = SCHEMES[2:]
"""Those of a token each."""


class Quantized(NamedTuple):
    """Rows whose products are integers: ``x[t, k] = (q[t, k] - zero[t]) * scale[t]``.

    Attributes:
        q: int8 [tokens, features], features side by side.
        q_stride: elements from one row to the next.
        scale: float32 [tokens], or [1] for all tokens.
        zero: int32 of scale's shape, the stored value of 0; None is 0 everywhere.
        stride: 1 where every token has its own scale and zero, else 0.
    """

    q: Tensor
    q_stride: int
    scale: Tensor
    zero: Tensor | None
    stride: int


class Epilogue(NamedTuple):
    """What happens to a sum ``acc[t, n]`` before it is stored, in float32.

    ``y = outputs(acc * x_scale[t] * weight_scale[n] + bias[n])``, then the activation function,
    then ``+ residual[t, n]``.

    Attributes:
        weight_scale: float32 [out]; None for products of floats.
        weight_sum: int32 [out], ``sum_k (w[n, k] - weight_zero[n])``; read where the input has zero
            points.
        weight_zero: int32 [out] or None: 0.
        bias: float32 [out] or None.
        out_scale: float32 [out] or None; how the result is requantized row by row, 0 where it is
            not (``LinearRequest.stacked_outputs``).
        out_zero: int32 [out], with out_scale.
        out_low: int32 [out], with out_scale.
        out_high: int32 [out], with out_scale.
        residual: float [tokens, out] or None.
        residual_stride: elements from one of its rows to the next.
    """

    weight_scale: Tensor | None = None
    weight_sum: Tensor | None = None
    weight_zero: Tensor | None = None
    bias: Tensor | None = None
    out_scale: Tensor | None = None
    out_zero: Tensor | None = None
    out_low: Tensor | None = None
    out_high: Tensor | None = None
    residual: Tensor | None = None
    residual_stride: int = 0


class Target(NamedTuple):
    """Where a result [tokens, features] goes: as floats, as quantized rows, or both.

    A dynamic scheme needs ``floats`` too: a token's scale is known once all of its features are,
    and they are then read back.

    Attributes:
        floats: float [tokens, features], features side by side; None only where the scheme is
            static or none is wanted.
        floats_stride: elements from one row to the next.
        q: int8 [tokens, features] or None: not quantized.
        q_stride: elements from one row to the next.
        scale: float32 [tokens], written; or [1], read, for a static scheme.
        zero: int32 of scale's shape or None: written for "asymmetric", read for "static".
        low: smallest stored value of a static scheme.
        high: largest stored value of a static scheme.
        ranges: int32 [2, tokens], zeros before and after: how far each token reaches below and
            above 0, as bits of float32. For a dynamic scheme in kernels that make a row in parts.
        counters: int32, zeros before and after, one for each block of rows; with ranges.
    """

    floats: Tensor | None
    floats_stride: int
    q: Tensor | None = None
    q_stride: int = 0
    scale: Tensor | None = None
    zero: Tensor | None = None
    low: int = -128
    high: int = 127
    ranges: Tensor | None = None
    counters: Tensor | None = None
