"""The stream of tokens -> a padded batch, in one pass: every row of it is written once."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
FEATURES = 256
SAMPLES = 256  # of the index looked at together, so that 65,536 tokens take two looks


@triton.jit
def count_below(index, tokens, row, SAMPLES: tl.constexpr):
    """How many of the ascending ``index[:tokens]`` are below ``row``."""
    # The answer lies in low .. low + width.
    low, width = 0, tokens
    while width > 0:
        step = (width + SAMPLES - 1) // SAMPLES
        # Each sample ends a piece of ``step`` tokens, all of them below where the sample is.
        at = low + (tl.arange(0, SAMPLES) + 1) * step - 1
        inside = at < low + width
        below = inside & (tl.load(index + at, mask=inside, other=0) < row)
        pieces = tl.sum(below.to(tl.int32))
        width = tl.minimum(width - pieces * step, step - 1)
        low += pieces * step
    return low


@triton.jit(do_not_specialize=["count", "rows"])
def repad_kernel(
    tokens,
    stride,
    index,
    count,
    padded,
    rows,
    features,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """One program for ROWS rows of the batch and FEATURES columns."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    before = count_below(index, count, first, SAMPLES)
    # Of the next tokens of the stream, which one belongs to each row?
    row = first + tl.arange(0, ROWS)
    candidate = before + tl.arange(0, ROWS)
    owner = tl.load(index + candidate, mask=candidate < count, other=-1).to(tl.int64)
    same = row[:, None] == owner[None, :]
    source = tl.max(tl.where(same, candidate[None, :], -1), axis=1)
    column = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    wanted = (column < features)[None, :]
    at = source.to(tl.int64)[:, None] * stride + column[None, :]
    x = tl.load(tokens + at, mask=(source >= 0)[:, None] & wanted, other=0.0)
    tl.store(padded + row[:, None] * features + column[None, :], x, (row < rows)[:, None] & wanted)


def repad(tokens: Tensor, index: Tensor, rows: int) -> Tensor:
    """Tokens -> padded rows, zeros elsewhere, as ``repad`` of reference.py; one launch.

    Args:
        tokens: float [tokens or more, features], features side by side.
        index: int32 or int64 [tokens], ascending: the row that each token goes to.
        rows: of the result, batch times columns.

    Returns:
        [rows, features] in the dtype of ``tokens``.
    """
    features = tokens.shape[1]
    padded = torch.empty(rows, features, dtype=tokens.dtype, device=tokens.device)
    if rows and features:
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(features, FEATURES))
        with torch.cuda.device_of(tokens):
            repad_kernel[grid](
                tokens,
                tokens.stride(0),
                index,
                len(index),
                padded,
                rows,
                features,
                ROWS=ROWS,
                FEATURES=FEATURES,
                SAMPLES=SAMPLES,
                num_warps=4,
            )
    return padded
