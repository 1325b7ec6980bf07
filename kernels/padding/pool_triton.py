"""Sequences of tokens -> one row each."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import POOLINGS

TOKENS = 32
FEATURES = 64
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def pool_rows(
    tokens,
    stride,
    columns,
    start,
    end,
    column,
    wanted,
    MODE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """float32 [FEATURES]: one pooling of the tokens from ``start`` to ``end``."""
    if MODE == "cls" or MODE == "lasttoken":
        at = start if MODE == "cls" else end - 1
        mask = wanted & (start < end)
        pooled = tl.load(tokens + at.to(tl.int64) * stride + column, mask=mask, other=0.0)
        pooled = pooled.to(tl.float32)
    else:
        initial: tl.constexpr = float("-inf") if MODE == "max" else 0.0
        pooled = tl.full(column.shape, initial, tl.float32)
        weights = 0.0
        # Columns are counted from the first token's; a sequence without one has no weights.
        if MODE == "weightedmean":
            first = tl.load(columns + start, mask=start < end, other=0).to(tl.int32)
        for base in range(start, end, TOKENS):
            row = base + tl.arange(0, TOKENS)
            live = row < end
            at = row.to(tl.int64)[:, None] * stride + column[None, :]
            inside = live[:, None] & wanted[None, :]
            x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
            if MODE == "max":
                x = tl.where(inside, x, initial)
                # tl.max leaves NaN out.
                poison = tl.max((x != x).to(tl.int32), axis=0) > 0
                largest = tl.maximum(pooled, tl.max(x, axis=0), tl.PropagateNan.ALL)
                pooled = tl.where(poison, float("nan"), largest)
            elif MODE == "weightedmean":
                column_of = tl.load(columns + row, mask=live, other=0).to(tl.int32)
                weight = tl.where(live, column_of - first + 1, 0).to(tl.float32)
                weights += tl.sum(weight)
                pooled += tl.sum(x * weight[:, None], axis=0)
            else:
                pooled += tl.sum(x, axis=0)
        if MODE == "mean":
            weights = (end - start).to(tl.float32)
        elif MODE == "mean_sqrt_len_tokens":
            weights = tl.sqrt_rn((end - start).to(tl.float32))
        if MODE != "max":
            pooled = tl.div_rn(pooled, tl.zeros_like(pooled) + weights)
    return pooled


@triton.jit(do_not_specialize=["out_stride"])
def pool_kernel(
    tokens,
    stride,
    columns,
    starts,
    out,
    out_stride,
    features,
    MODE: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """One program for a sequence and FEATURES columns."""
    row = tl.program_id(0)
    start, end = tl.load(starts + row), tl.load(starts + row + 1)
    column = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    wanted = column < features
    pooled = pool_rows(tokens, stride, columns, start, end, column, wanted, MODE, TOKENS)
    at = row.to(tl.int64) * out_stride + column
    tl.store(out + at, pooled.to(out.dtype.element_ty), mask=wanted)


def pool(tokens: Tensor, starts: Tensor, columns: Tensor, modes: tuple[str, ...]) -> Tensor:
    """Pool each sequence's tokens, as ``pool`` of reference.py; one launch a mode.

    Args:
        tokens: float [tokens or more, features], features side by side.
        starts: int32 [batch + 1], where each sequence starts, and the end of the last.
        columns: int32 or int64 [tokens or more], each token's column in the padded batch.
        modes: names of ``POOLINGS``.

    Returns:
        [batch, features * modes] in the dtype of ``tokens``.

    Raises:
        ValueError: an unknown mode.
    """
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise ValueError(f"modes: expected some of {list(POOLINGS)}, got {unknown[0]!r}")
    batch, features = len(starts) - 1, tokens.shape[1]
    out = torch.empty(batch, features * len(modes), dtype=tokens.dtype, device=tokens.device)
    if batch == 0 or features == 0:
        return out
    with torch.cuda.device_of(tokens):
        for place, mode in enumerate(modes):
            pool_kernel[(batch, triton.cdiv(features, FEATURES))](
                tokens,
                tokens.stride(0),
                columns,
                starts,
                out[:, place * features :],
                out.stride(0),
                features,
                MODE=mode,
                TOKENS=TOKENS,
                FEATURES=FEATURES,
                num_warps=4,
            )
    return out
