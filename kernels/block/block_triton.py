"""Block-sparse linear layers: tiles of the stored blocks times gathered inputs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..linear.epilogue_triton import dequantize, end
from ..linear.operands import Epilogue, Quantized, Target
from ..quantize.target_triton import finish_rows, store_tile
from .configs import BlockConfig
from .layout import BlockTiles

EXTRA = {}
PIECES = 1
FINISH_COLUMNS = tl.constexpr(64)


@triton.jit
def multiply(
    x,
    tiles,
    starts,
    rows,
    first,
    last,
    in_features,
    BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    RUN: tl.constexpr,
    MASK: tl.constexpr,
):
    KIND: tl.constexpr = tl.int32 if x.q.dtype.element_ty == tl.int8 else tl.float32
    acc = tl.zeros((BLOCK_M, ROWS), dtype=KIND)
    k = tl.arange(0, STEP)
    x_rows = x.q + rows.to(tl.int64)[:, None] * x.q_stride
    tile = tl.arange(0, ROWS)[None, :] * STEP + k[:, None]
    runs = starts + first * (STEP // RUN) + (0 if RUN == STEP else k // RUN)
    start = tl.multiple_of(tl.load(runs, mask=first < last, other=0), RUN)
    for step in range(first, last):
        columns = start + (k if RUN == STEP else k % RUN)
        if MASK == "none":
            a = tl.load(x_rows + columns[None, :])
        elif MASK == "runs":
            live = (start + tl.zeros_like(k)) < in_features
            a = tl.load(x_rows + columns[None, :], mask=live[None, :], other=0)
        else:
            a = tl.load(x_rows + columns[None, :], mask=(columns < in_features)[None, :], other=0)
        b = tl.load(tiles + step.to(tl.int64) * (ROWS * STEP) + tile)
        runs += STEP // RUN
        start = tl.multiple_of(tl.load(runs, mask=step + 1 < last, other=0), RUN)
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=KIND)
    return acc


@triton.jit
def halves(acc):
    parts = tl.permute(tl.reshape(acc, (acc.shape[0], 2, acc.shape[1] // 2)), (0, 2, 1))
    return tl.split(parts)


@triton.jit
def store(acc, output, offset: tl.constexpr, height, rows, tokens, out_features, x, epilogue, target, ACTIVATION: tl.constexpr, SCHEME: tl.constexpr, FULL: tl.constexpr):
    at = offset + tl.arange(0, acc.shape[1])
    columns = output + at
    if not FULL:
        columns = tl.where(at < height, columns, out_features)
    if x.scale is not None:
        y = dequantize(acc, None, rows, columns, tokens, out_features, x, epilogue)
    else:
        y = acc
    y = end(y, rows, columns, tokens, out_features, epilogue, ACTIVATION)
    store_tile(y, rows, columns, tokens, out_features, target, SCHEME)


@triton.jit(do_not_specialize=["tokens", "token_tiles", "items_count"])
def block_kernel(
    x,
    tiles,
    starts,
    items,
    epilogue,
    target,
    partials,
    counters,
    tokens,
    token_tiles,
    items_count,
    arrivals,
    in_features,
    out_features,
    ACTIVATION: tl.constexpr,
    SCHEME: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    RUN: tl.constexpr,
    MASK: tl.constexpr,
    FULL: tl.constexpr,
    GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
    PIECES: tl.constexpr,
):
    program = tl.program_id(0)
    group = program // (GROUP_M * items_count)
    within = program % (GROUP_M * items_count)
    size = tl.minimum(token_tiles - group * GROUP_M, GROUP_M)
    token_tile = group * GROUP_M + within % size
    item = items + (within // size) * 8
    output = tl.load(item)
    first = tl.load(item + 2)
    last = tl.load(item + 3)
    rows = token_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    # Rows behind the last read the last: cheaper than a mask, and never stored.
    acc = multiply(x, tiles, starts, tl.minimum(rows, tokens - 1), first, last, in_features,
                   BLOCK_M, ROWS, STEP, RUN, MASK)
    owner = True
    if PARTS:
        part = tl.load(item + 4)
        parts = tl.load(item + 5)
        if parts > 1:
            slot = tl.load(item + 6)
            counter = counters + tl.load(item + 7) * token_tiles + token_tile
            at = tl.arange(0, BLOCK_M)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
            first_slot = partials + (slot.to(tl.int64) * token_tiles + token_tile) * (BLOCK_M * ROWS) + at
            stride = token_tiles.to(tl.int64) * (BLOCK_M * ROWS)
            tl.store(first_slot + part * stride, acc)
            tl.debug_barrier()
            arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
            owner = arrived == parts - 1
            if owner:
                tl.debug_barrier()
                acc = tl.load(first_slot)
                for other in range(1, parts):
                    acc += tl.load(first_slot + other * stride)
                tl.store(counter, 0)
    if owner:
        height = ROWS if FULL else tl.load(item + 1)
        if PIECES == 1:
            store(acc, output, 0, height, rows, tokens, out_features, x, epilogue, target, ACTIVATION, SCHEME, FULL)
        elif PIECES == 2:
            low, high = halves(acc)
            store(low, output, 0, height, rows, tokens, out_features, x, epilogue, target, ACTIVATION, SCHEME, FULL)
            store(high, output, ROWS // 2, height, rows, tokens, out_features, x, epilogue, target, ACTIVATION, SCHEME, FULL)
        else:
            low, high = halves(acc)
            a, b = halves(low)
            store(a, output, 0, height, rows, tokens, out_features, x, epilogue, target, ACTIVATION, SCHEME, FULL)
            store(b, output, ROWS // 4, height, rows, tokens, out_features, x, epilogue, target, ACTIVATION, SCHEME, FULL)
            a, b = halves(high)
            store(a, output, ROWS // 2, height, rows, tokens, out_features, x, epilogue, target, ACTIVATION, SCHEME, FULL)
            store(b, output, 3 * ROWS // 4, height, rows, tokens, out_features, x, epilogue, target, ACTIVATION, SCHEME, FULL)
        finish_rows(token_tile, arrivals, rows, tokens, out_features, target, SCHEME, FINISH_COLUMNS)


def block_linear(x, weight: BlockTiles, epilogue, activation, target, scheme, config: BlockConfig, workspace):
    q = x if isinstance(x, Quantized) else Quantized(x, x.stride(0), None, None, 0)
    tokens = q.q.shape[0]
    token_tiles = triton.cdiv(tokens, config.block_m)
    if tokens == 0:
        return
    items = weight.parts if config.parts else weight.whole
    if weight.in_features % weight.block_cols == 0 and weight.block_cols % weight.step == 0:
        mask = "none"
    elif weight.in_features % weight.run == 0:
        mask = "runs"
    else:
        mask = "columns"
    full = weight.rows == weight.block_rows or weight.block_rows % 128 == 0
    return block_kernel[(token_tiles * items.shape[0],)](
        q, weight.tiles, weight.starts, items, epilogue, target, workspace[0], workspace[1],
        tokens, token_tiles, items.shape[0], weight.whole.shape[0],
        weight.in_features, weight.out_features,
        ACTIVATION=activation or "none", SCHEME=scheme, BLOCK_M=config.block_m, ROWS=weight.rows,
        STEP=weight.step, RUN=weight.run, MASK=mask, FULL=full, GROUP_M=config.group_m, PARTS=config.parts, PIECES=PIECES,
        **EXTRA, num_warps=config.num_warps, num_stages=config.num_stages,
        enable_fp_fusion=scheme == "none" and q.scale is None,
    )
