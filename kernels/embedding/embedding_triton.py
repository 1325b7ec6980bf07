"""Sum of embedding rows, norm and quantization, one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layer_norm.layer_norm_triton import KINDS, normalize_rows
from ..linear.operands import Target
from ..quantize.row_blocks import row_blocks
from ..quantize.target_triton import store_rows

MAX_TABLES = 3


@triton.jit
def look_up(ids, table, stride, height, rows, columns, tokens, features):
    """float32 [rows, columns] of a table; NaN where an id is not in it."""
    live, wanted = rows < tokens, columns < features
    at = tl.load(ids + rows, mask=live, other=0).to(tl.int64)
    found = (at >= 0) & (at < height)
    inside = (live & found)[:, None] & wanted[None, :]
    y = tl.load(table + at[:, None] * stride + columns[None, :], mask=inside, other=0.0)
    return tl.where(found[:, None] | ~wanted[None, :], y.to(tl.float32), float("nan"))


@triton.jit(do_not_specialize=["tokens"])
def embed_kernel(
    ids,
    tables,
    strides,
    heights,
    weight,
    bias,
    eps,
    tokens,
    features,
    target,
    TABLES: tl.constexpr,
    KIND: tl.constexpr,
    SCHEME: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    y = look_up(ids[0], tables[0], strides[0], heights[0], rows, columns, tokens, features)
    for i in tl.static_range(1, TABLES):
        y += look_up(ids[i], tables[i], strides[i], heights[i], rows, columns, tokens, features)
    if KIND != "none":
        y = normalize_rows(y, columns, features, weight, bias, eps, KIND)
    store_rows(y, rows, columns, tokens, features, target, SCHEME)


def embed(
    ids: tuple[Tensor, ...],
    tables: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    kind: str | None,
    target: Target,
    scheme: str,
) -> None:
    """Look up, add in the order given and normalize, all in float32, into ``target``.

    An id outside of its table makes its token's floats NaN, and quantized rows what
    kernels/linear/reference.py makes of NaN: a launch cannot raise.

    Args:
        ids: int32 or int64 [tokens] for each table, contiguous.
        tables: one to three float [rows, features], features side by side.
        weight: float [features] of the norm; not read without one.
        bias: float [features], with weight.
        eps: of the norm.
        kind: "layer_norm", "no_norm" or None: no norm.
        target: may lack ``floats`` for every scheme but "none".
        scheme: one of ``SCHEMES``.

    Raises:
        ValueError: the numbers of tables and ids, the kind, the norm's tensors or the layout of a
            tensor are not as said.
    """
    if not 1 <= len(tables) <= MAX_TABLES or len(ids) != len(tables):
        raise ValueError(f"{len(tables)} tables, {len(ids)} ids: give one to three of each")
    if kind is not None and (kind not in KINDS or weight is None or bias is None):
        raise ValueError(f"kind {kind!r}: give one of {KINDS} with weight and bias, or None")
    for i, (index, table) in enumerate(zip(ids, tables, strict=True)):
        if not index.is_contiguous():
            raise ValueError(f"ids[{i}] has strides {index.stride()}: must be contiguous")
        if table.shape[1] > 1 and table.stride(1) != 1:
            raise ValueError(
                f"tables[{i}] has strides {table.stride()}: features must lie side by side"
            )
    tokens, features = len(ids[0]), tables[0].shape[1]
    if tokens == 0:
        return
    blocks = row_blocks(tokens, features)
    with torch.cuda.device_of(tables[0]):
        embed_kernel[(triton.cdiv(tokens, blocks.rows),)](
            ids,
            tables,
            tuple(table.stride(0) for table in tables),
            tuple(table.shape[0] for table in tables),
            weight,
            bias,
            eps,
            tokens,
            features,
            target._replace(ranges=None, counters=None),
            len(tables),
            kind or "none",
            scheme,
            blocks.rows,
            blocks.columns,
            num_warps=blocks.num_warps,
            enable_fp_fusion=False,
        )
