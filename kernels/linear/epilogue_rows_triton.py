"""The epilogue as a kernel of its own, behind a product that a library made."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantize.target_triton import store_rows
from .epilogue_triton import dequantize, end
from .operands import Epilogue, Quantized, Target

MOST_FEATURES = 16384
"""A program holds whole rows where their scales depend on them."""

_TILE = 1024  # columns of a program that need not hold whole rows
_K_STEP = tl.constexpr(256)


# The number of tokens differs from call to call: one compilation serves all.
@triton.jit(do_not_specialize=["tokens"])
def epilogue_rows_kernel(
    acc,
    x,
    tokens,
    inputs,
    features,
    epilogue,
    target,
    ACTIVATION: tl.constexpr,
    SCHEME: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One block of rows, whole where their scales depend on all of them."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = rows < tokens
    inside = live[:, None] & (columns < features)[None, :]
    at = rows.to(tl.int64)[:, None] * features + columns[None, :]
    y = tl.load(acc + at, mask=inside, other=0)
    if x is not None:
        x_sum = tl.zeros([BLOCK_M], tl.int32)
        if epilogue.weight_zero is not None:
            for first in range(0, inputs, _K_STEP):
                k = first + tl.arange(0, _K_STEP)
                read = live[:, None] & (k < inputs)[None, :]
                from_row = rows.to(tl.int64)[:, None] * x.q_stride + k[None, :]
                x_sum += tl.sum(tl.load(x.q + from_row, mask=read, other=0).to(tl.int32), axis=1)
        y = dequantize(y, x_sum, rows, columns, tokens, features, x, epilogue)
    y = end(y.to(tl.float32), rows, columns, tokens, features, epilogue, ACTIVATION)
    # Columns behind the last do not count for a row's range: bias and activation left them at
    # act(0), which is 0 for every function there is, but a quantizer's zero point may not.
    y = tl.where(inside, y, 0.0)
    store_rows(y, rows, columns, tokens, features, target, SCHEME)


def epilogue_rows(
    acc: Tensor,
    x: Quantized | None,
    epilogue: Epilogue,
    activation: str | None,
    target: Target,
    scheme: str,
) -> None:
    """Dequantize a product, finish it as ``epilogue`` says, and store it as ``target`` asks.

    Args:
        acc: int32 [tokens, features], sums of stored values, with ``x``; or floats without.
            Contiguous.
        x: the integers that were multiplied, or None: ``acc`` is the product itself.
        epilogue: what follows.
        activation: a key of ``ACTIVATIONS`` or None.
        target: where the result goes; its ``ranges`` and ``counters`` are not used.
        scheme: one of ``SCHEMES``; dynamic ones take up to ``MOST_FEATURES`` features.
    """
    tokens, features = acc.shape
    whole = scheme not in ("none", "static")
    columns = triton.next_power_of_2(features)
    columns = max(16, columns if whole else min(columns, _TILE))
    rows = max(1, 2048 // columns)
    grid = (triton.cdiv(tokens, rows), triton.cdiv(features, columns))
    with torch.cuda.device_of(acc):
        epilogue_rows_kernel[grid](
            acc,
            x,
            tokens,
            0 if x is None else x.q.shape[1],
            features,
            epilogue,
            target,
            activation or "none",
            scheme,
            rows,
            columns,
            num_warps=16 if columns > 8192 else 8 if columns > 2048 else 4,
            # Rounded as the reference rounds: each product, then each sum.
            enable_fp_fusion=False,
        )
