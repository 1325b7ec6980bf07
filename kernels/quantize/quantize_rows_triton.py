"""Rows of floats -> quantized rows, one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..linear.operands import Target
from .quantize_triton import magnitude_above, magnitude_below, quantize_dynamic, scales_of
from .row_blocks import row_blocks
from .target_triton import store_rows, store_tile

HELD = 8192
"""Features up to which a program holds a row; it reads longer ones twice, in parts."""

_PART = 4096
_PART_WARPS = 8


@triton.jit(do_not_specialize=["tokens"])
def held_rows_kernel(
    x,
    x_stride,
    tokens,
    features,
    target,
    SCHEME: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < tokens)[:, None] & (columns < features)[None, :]
    at = rows.to(tl.int64)[:, None] * x_stride + columns[None, :]
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    store_rows(y, rows, columns, tokens, features, target, SCHEME)


@triton.jit(do_not_specialize=["tokens"])
def long_rows_kernel(
    x, x_stride, tokens, features, target, SCHEME: tl.constexpr, COLUMNS: tl.constexpr
):
    rows = tl.program_id(0) + tl.arange(0, 1)
    x += tl.program_id(0).to(tl.int64) * x_stride
    if SCHEME == "static":
        for first in range(0, features, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            y = tl.load(x + columns[None, :], mask=(columns < features)[None, :], other=0.0)
            store_tile(y.to(tl.float32), rows, columns, tokens, features, target, SCHEME)
    else:
        below = tl.zeros([1], tl.int32)
        above = tl.zeros([1], tl.int32)
        for first in range(0, features, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            y = tl.load(x + columns[None, :], mask=(columns < features)[None, :], other=0.0)
            y = y.to(tl.float32)
            below = tl.maximum(below, tl.max(magnitude_below(y), axis=1))
            above = tl.maximum(above, tl.max(magnitude_above(y), axis=1))
        scale, factor, zero = scales_of(below, above, SCHEME)
        q_row = target.q + tl.program_id(0).to(tl.int64) * target.q_stride
        for first in range(0, features, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            inside = (columns < features)[None, :]
            y = tl.load(x + columns[None, :], mask=inside, other=0.0).to(tl.float32)
            q = quantize_dynamic(y, factor[:, None], zero[:, None], SCHEME)
            tl.store(q_row + columns[None, :], q, mask=inside)
        tl.store(target.scale + rows, scale)
        if target.zero is not None:
            tl.store(target.zero + rows, zero)


def quantize_rows(x: Tensor, target: Target, scheme: str) -> None:
    """Quantize as kernels/linear/reference.py, to the last bit.

    Args:
        x: float [tokens, features], features side by side.
        target: its ``q``, ``scale`` and ``zero`` are used; ``floats`` is left alone.
        scheme: one of ``SCHEMES`` but "none".

    Raises:
        ValueError: x's features do not lie side by side, or nothing is to be quantized.
    """
    if scheme == "none" or target.q is None:
        raise ValueError(f"scheme {scheme!r} and target.q {target.q}: give int8 rows to write")
    if x.shape[1] > 1 and x.stride(1) != 1:
        raise ValueError(f"x has strides {x.stride()}: features must lie side by side")
    tokens, features = x.shape
    if tokens == 0:
        return
    target = target._replace(floats=None, floats_stride=0, ranges=None, counters=None)
    with torch.cuda.device_of(x):
        if features > HELD:
            long_rows_kernel[(tokens,)](
                x,
                x.stride(0),
                tokens,
                features,
                target,
                scheme,
                _PART,
                num_warps=_PART_WARPS,
                enable_fp_fusion=False,
            )
            return
        blocks = row_blocks(tokens, features)
        held_rows_kernel[(triton.cdiv(tokens, blocks.rows),)](
            x,
            x.stride(0),
            tokens,
            features,
            target,
            scheme,
            blocks.rows,
            blocks.columns,
            num_warps=blocks.num_warps,
            enable_fp_fusion=False,
        )
