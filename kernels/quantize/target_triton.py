"""Storing results as a ``Target`` (kernels/linear/operands.py) asks, in whole rows or in tiles.

A kernel that makes a row in tiles, by several programs, cannot know a token's scale until the last
of them is done. So each stores its floats, raises the token's range by atomics (a maximum does not
depend on the order, so results repeat bit for bit), and counts itself in; the last to arrive for a
block of rows reads the floats back and quantizes them. Nobody waits.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from .quantize_triton import (
    quantize_dynamic,
    quantize_static,
    reach,
    scales_of,
)


@triton.jit
def store_tile(y, rows, columns, tokens, features, target, SCHEME: tl.constexpr):
    """Store one tile of results; for a dynamic scheme :func:`finish_rows` must follow.

    Args:
        y: float32 [rows, columns].
        rows: int32, which tokens.
        columns: int32, which features.
        tokens: number of all rows.
        features: number of all columns.
        target: a ``Target``.
        SCHEME: one of ``SCHEMES``.
    """
    inside = (rows < tokens)[:, None] & (columns < features)[None, :]
    if target.floats is not None:
        kind = target.floats.dtype.element_ty
        at = rows.to(tl.int64)[:, None] * target.floats_stride + columns[None, :]
        rounded = y.to(kind)
        tl.store(target.floats + at, rounded, mask=inside)
        y = rounded.to(tl.float32)  # quantized is what readers of the floats see
    if SCHEME == "static":
        zero = 0 if target.zero is None else tl.load(target.zero)
        q = quantize_static(y, tl.load(target.scale), zero, target.low, target.high)
        at = rows.to(tl.int64)[:, None] * target.q_stride + columns[None, :]
        tl.store(target.q + at, q.to(tl.int8), mask=inside)
    elif SCHEME != "none":
        y = tl.where(inside, y, 0.0)
        live = rows < tokens
        below, above = reach(y, SCHEME)
        if SCHEME == "asymmetric":
            tl.atomic_max(target.ranges + rows, below, mask=live, sem="relaxed")
        tl.atomic_max(target.ranges + tokens + rows, above, mask=live, sem="relaxed")


@triton.jit
def finish_rows(
    block,
    arrivals,
    rows,
    tokens,
    features,
    target,
    SCHEME: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Quantize rows whose every tile has been stored by :func:`store_tile`, if this is the last.

    Args:
        block: which counter these rows have.
        arrivals: how many programs store tiles of these rows; each calls this once.
        rows: int32, which tokens; those from ``tokens`` on are left out.
        tokens: number of all rows.
        features: number of all columns.
        target: a ``Target``.
        SCHEME: one of ``SCHEMES``; nothing happens for "none" and "static".
        BLOCK_N: columns quantized at a time.
    """
    if SCHEME != "none" and SCHEME != "static":
        # Every thread's stores come before the count, which releases them to whoever counts last.
        tl.debug_barrier()
        arrived = tl.atomic_add(target.counters + block, 1, sem="acq_rel", scope="gpu")
        if arrived == arrivals - 1:
            tl.debug_barrier()
            live = rows < tokens
            below = tl.load(target.ranges + rows, mask=live, other=0)
            above = tl.load(target.ranges + tokens + rows, mask=live, other=0)
            scale, factor, zero = scales_of(below, above, SCHEME)
            for first in range(0, features, BLOCK_N):
                columns = first + tl.arange(0, BLOCK_N)
                inside = live[:, None] & (columns < features)[None, :]
                at = rows.to(tl.int64)[:, None] * target.floats_stride + columns[None, :]
                y = tl.load(target.floats + at, mask=inside, other=0.0).to(tl.float32)
                q = quantize_dynamic(y, factor[:, None], zero[:, None], SCHEME)
                at = rows.to(tl.int64)[:, None] * target.q_stride + columns[None, :]
                tl.store(target.q + at, q, mask=inside)
            tl.store(target.scale + rows, scale, mask=live)
            if target.zero is not None:
                tl.store(target.zero + rows, zero, mask=live)
            # As they were found, for the next launch, once every thread has read them.
            tl.debug_barrier()
            tl.store(target.ranges + rows, tl.zeros_like(below), mask=live)
            tl.store(target.ranges + tokens + rows, tl.zeros_like(above), mask=live)
            tl.store(target.counters + block, 0)


@triton.jit
def store_rows(y, rows, columns, tokens, features, target, SCHEME: tl.constexpr):
    """Store whole rows, whose columns this program holds all.

    Args:
        y: float32 [rows, columns], 0 in columns from ``features`` on.
        rows: int32, which tokens.
        columns: int32, all features and beyond.
        tokens: number of all rows.
        features: number of all columns.
        target: a ``Target``; ``ranges`` and ``counters`` are not used.
        SCHEME: one of ``SCHEMES``.
    """
    if SCHEME == "none" or SCHEME == "static":
        store_tile(y, rows, columns, tokens, features, target, SCHEME)
    else:
        live = rows < tokens
        inside = live[:, None] & (columns < features)[None, :]
        if target.floats is not None:
            at = rows.to(tl.int64)[:, None] * target.floats_stride + columns[None, :]
            rounded = y.to(target.floats.dtype.element_ty)
            tl.store(target.floats + at, rounded, mask=inside)
            y = rounded.to(tl.float32)
        below, above = reach(y, SCHEME)
        scale, factor, zero = scales_of(below, above, SCHEME)
        q = quantize_dynamic(y, factor[:, None], zero[:, None], SCHEME)
        at = rows.to(tl.int64)[:, None] * target.q_stride + columns[None, :]
        tl.store(target.q + at, q, mask=inside)
        tl.store(target.scale + rows, scale, mask=live)
        if target.zero is not None:
            tl.store(target.zero + rows, zero, mask=live)
