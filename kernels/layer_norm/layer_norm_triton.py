"""Residual, norm and quantization of rows, one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..linear.operands import Target
from ..quantize.row_blocks import row_blocks
from ..quantize.target_triton import store_rows

KINDS = ("layer_norm", "no_norm")


@triton.jit
def normalize_rows(y, columns, features, weight, bias, eps, KIND: tl.constexpr):
    """The norm of whole float32 rows [rows, columns], 0 in columns from ``features`` on.

    Mean and variance are taken one after the other: the difference of two large moments would lose
    what a row with a large mean varies by.
    """
    wanted = columns < features
    if KIND == "layer_norm":
        mean = tl.sum(y, axis=1) / features
        y = tl.where(wanted[None, :], y - mean[:, None], 0.0)
        variance = tl.sum(y * y, axis=1) / features
        y = (
            y
            * tl.div_rn(tl.full(variance.shape, 1.0, tl.float32), tl.sqrt_rn(variance + eps))[
                :, None
            ]
        )
    else:
        tl.static_assert(KIND == "no_norm", "an unknown kind of norm")
    w = tl.load(weight + columns, mask=wanted, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=wanted, other=0.0).to(tl.float32)
    # Columns outside: 0 * NaN of a row without numbers must not come back.
    return tl.where(wanted[None, :], y * w[None, :] + b[None, :], 0.0)


@triton.jit(do_not_specialize=["tokens"])
def normalize_kernel(
    x,
    x_stride,
    residual,
    residual_stride,
    weight,
    bias,
    eps,
    tokens,
    features,
    target,
    KIND: tl.constexpr,
    SCHEME: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < tokens)[:, None] & (columns < features)[None, :]
    at = rows.to(tl.int64)[:, None] * x_stride + columns[None, :]
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        at = rows.to(tl.int64)[:, None] * residual_stride + columns[None, :]
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    y = normalize_rows(y, columns, features, weight, bias, eps, KIND)
    store_rows(y, rows, columns, tokens, features, target, SCHEME)


def normalize(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    target: Target,
    scheme: str,
    kind: str = "layer_norm",
) -> None:
    """``norm(x + residual)``, summed and normalized in float32, into ``target``.

    Args:
        x: float [tokens, features], features side by side.
        residual: float [tokens, features], features side by side, or None.
        weight: float [features].
        bias: float [features].
        eps: added to the variance; not read by "no_norm".
        target: may lack ``floats`` for every scheme but "none".
        scheme: one of ``SCHEMES``.
        kind: "layer_norm", or "no_norm": ``x * weight + bias`` (MobileBERT, arXiv 2004.02984).

    Raises:
        ValueError: features do not lie side by side, an unknown kind, or more than ``MAX_COLUMNS``
            features.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: one of {KINDS} is known")
    for name, rows in (("x", x), ("residual", residual)):
        if rows is not None and rows.shape[1] > 1 and rows.stride(1) != 1:
            raise ValueError(f"{name} has strides {rows.stride()}: features must lie side by side")
    tokens, features = x.shape
    if tokens == 0:
        return
    blocks = row_blocks(tokens, features)
    with torch.cuda.device_of(x):
        normalize_kernel[(triton.cdiv(tokens, blocks.rows),)](
            x,
            x.stride(0),
            residual,
            0 if residual is None else residual.stride(0),
            weight,
            bias,
            eps,
            tokens,
            features,
            target._replace(ranges=None, counters=None),
            kind,
            scheme,
            blocks.rows,
            blocks.columns,
            num_warps=blocks.num_warps,
            enable_fp_fusion=False,
        )
