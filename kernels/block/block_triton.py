"""A block-sparse linear layer in one launch: stored tiles times the inputs that they meet.

A program multiplies BLOCK_M tokens with one row of tiles, or with a part of it (schedule.py), and
ends the result as linear_triton.py does. Each step loads a tile of the weight, which lies in one
piece, and the inputs of its columns, in runs of consecutive ones wherever these are: one kernel for
blocks of any width.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..linear.linear_triton import Floats, end_columns, tile_of_program
from ..linear.operands import Epilogue, Quantized, Target
from ..linear.tiles import Workspace
from ..quantize.target_triton import finish_rows
from .configs import BlockConfig
from .layout import HIGHEST_TILE, BlockTiles
from .schedule import ITEM_FIELDS

FIELDS = tl.constexpr(ITEM_FIELDS)
SUMS_OF_A_THREAD = 32
"""Sums that a thread can end at a time without running out of registers."""


@triton.jit
def multiply(
    x, tiles, starts, rows, first, last, in_features,
    ROWS: tl.constexpr, STEP: tl.constexpr, RUN: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Sums [rows, ROWS] over the steps from first to last."""
    sums: tl.constexpr = tl.int32 if x.q.dtype.element_ty == tl.int8 else tl.float32
    acc = tl.zeros((rows.shape[0], ROWS), sums)
    k = tl.arange(0, STEP)
    x_rows = x.q + rows.to(tl.int64)[:, None] * x.q_stride
    tile_at = tiles + first.to(tl.int64) * (ROWS * STEP)
    within = tl.arange(0, ROWS)[None, :] * STEP + k[:, None]
    # Where the next step's inputs start is loaded one step ahead, and by hand: found by itself, the
    # load would take one of the pipeline's stages from the inputs.
    runs = starts + first * (STEP // RUN) + (0 if RUN == STEP else k // RUN)
    start = tl.multiple_of(tl.load(runs, mask=first < last, other=0), RUN)
    for step in range(first, last):
        inputs = start + (k if RUN == STEP else k % RUN)
        if MASK == "none":
            part = tl.load(x_rows + inputs[None, :])
        else:
            tested = inputs if MASK == "inputs" else start + tl.zeros_like(k)
            part = tl.load(x_rows + inputs[None, :], mask=(tested < in_features)[None, :], other=0)
        tile = tl.load(tile_at + within)
        tile_at += ROWS * STEP
        runs += STEP // RUN
        start = tl.multiple_of(tl.load(runs, mask=step + 1 < last, other=0), RUN)
        acc = tl.dot(part, tile, acc, input_precision="ieee", out_dtype=sums)
    return acc


@triton.jit
def meet(acc, item, m, tiles_m, workspace):
    """Leave a part's sums in the workspace; the last to arrive takes those of the whole row.

    Returns:
        (sums, whether they are the whole row's)
    """
    part, parts = tl.load(item + 4), tl.load(item + 5)
    whole = parts == 1
    if parts > 1:
        ROWS: tl.constexpr = acc.shape[1]
        within = tl.arange(0, acc.shape[0])[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        first = tl.load(item + 6).to(tl.int64) * tiles_m + m
        place = workspace.partials + first * (acc.shape[0] * ROWS) + within
        stride = tiles_m.to(tl.int64) * (acc.shape[0] * ROWS)
        counter = workspace.counters + tl.load(item + 7) * tiles_m + m
        tl.store(place + part * stride, acc)
        # Every thread's stores come before the count, which releases them to whoever counts last.
        tl.debug_barrier()
        whole = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == parts - 1
        if whole:
            tl.debug_barrier()
            acc = tl.load(place)
            for other in range(1, parts):
                acc += tl.load(place + other * stride)
            tl.store(counter, 0)
    return acc, whole


# These differ from call to call or from layer to layer: one compilation serves all.
@triton.jit(do_not_specialize=["tokens", "items_count", "arrivals", "group_m"])
def block_kernel(
    x, tiles, starts, items, epilogue, target, workspace,
    tokens, items_count, arrivals, group_m, in_features, out_features,
    ACTIVATION: tl.constexpr, SCHEME: tl.constexpr,
    BLOCK_M: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, RUN: tl.constexpr,
    MASK: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr, PARTS: tl.constexpr,
    PIECES: tl.constexpr, FINISH_N: tl.constexpr,
):  # fmt: skip
    """One item for one block of tokens. Grid: (blocks of tokens * items,)."""
    tl.static_assert(epilogue.weight_zero is None, "weights with zero points: see why_not")
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    m, n = tile_of_program(tl.program_id(0), tiles_m, items_count, group_m)
    item = items + n * FIELDS
    # Hints, without which every value would be stored by itself.
    output = tl.multiple_of(tl.load(item), ALIGNED)
    behind = out_features if FULL else tl.multiple_of(output + tl.load(item + 1), ALIGNED)
    rows = m * BLOCK_M + tl.arange(0, BLOCK_M)
    # Rows beyond the last repeat it: a load without a mask, of what nobody stores.
    read = tl.minimum(rows, tokens - 1)
    first, last = tl.load(item + 2), tl.load(item + 3)
    acc = multiply(x, tiles, starts, read, first, last, in_features, ROWS, STEP, RUN, MASK)
    whole = True
    if PARTS:
        acc, whole = meet(acc, item, m, tiles_m, workspace)
    if whole:
        end_columns(
            acc, None, rows, output, tokens, behind, x, epilogue, target,
            ACTIVATION, SCHEME, PIECES,
        )  # fmt: skip
        finish_rows(m, arrivals, rows, tokens, out_features, target, SCHEME, FINISH_N)


def block_linear(
    x: Quantized | Tensor,
    weight: BlockTiles,
    epilogue: Epilogue,
    activation: str | None,
    target: Target,
    scheme: str,
    config: BlockConfig,
    workspace: Workspace,
) -> None:
    """``y = activation(outputs(x w + bias)) + residual``, stored as ``target`` asks.

    Inputs that meet no stored block are not read: a NaN among them does not reach the outputs.
    Nothing is checked, copied or synchronized: it may run inside of a CUDA graph.

    Args:
        x: ``Quantized`` rows, or float [tokens, in] of the weight's type, features side by side.
        weight: the packed layer (layout.py).
        epilogue: what happens to the sums; ``weight_scale`` where products are integers. Weights
            have no zero points.
        activation: a key of ``ACTIVATIONS`` (reference.py) or None.
        target: where results go; its tensors have the layer's outputs as columns.
        scheme: how results are quantized, one of ``SCHEMES``.
        config: tiles and schedule.
        workspace: at least what ``workspace_needs`` says.
    """
    rows = x if isinstance(x, Quantized) else Floats(x, x.stride(0))
    tokens = len(rows.q)
    if tokens == 0 or weight.out_features == 0:
        return
    parts = config.parts and weight.slots > 0
    items = weight.parts if parts else weight.whole
    partials = workspace.partials if parts else None
    if partials is not None:
        partials = partials.view(torch.int32 if rows.q.dtype == torch.int8 else torch.float32)
    sums = config.block_m * weight.rows // (32 * config.num_warps)
    # Beside its sums, a program of a part holds where they go: larger ones would spill.
    small = not parts or min(config.block_m, weight.rows) == 16
    at_once = SUMS_OF_A_THREAD if small else SUMS_OF_A_THREAD // 4
    programs = triton.cdiv(tokens, config.block_m) * len(items)
    with torch.cuda.device_of(rows.q):
        block_kernel[(programs,)](
            rows, weight.tiles, weight.starts, items, epilogue, target,
            Workspace(partials, workspace.counters),
            tokens, len(items), len(weight.whole), config.group_m,
            weight.in_features, weight.out_features,
            ACTIVATION=activation or "none", SCHEME=scheme,
            BLOCK_M=config.block_m, ROWS=weight.rows, STEP=weight.step, RUN=weight.run,
            MASK=_mask(weight), FULL=weight.block_rows % weight.rows == 0,
            ALIGNED=_alignment(weight),
            PARTS=parts, PIECES=1 if sums <= at_once else 4,
            FINISH_N=max(16, SUMS_OF_A_THREAD * 32 * config.num_warps // config.block_m),
            num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=False,
        )  # fmt: skip


def _alignment(weight: BlockTiles) -> int:
    """The power of two that divides every row's first output and the one behind its last."""
    common = gcd(weight.block_rows, weight.out_features, HIGHEST_TILE)
    return common & -common


def _mask(weight: BlockTiles) -> str:
    """What must be compared with the number of inputs: nothing, runs' starts, or each input."""
    if weight.in_features % weight.run:
        return "inputs"
    whole = weight.block_cols % weight.step == 0 and weight.in_features % weight.block_cols == 0
    return "none" if whole else "runs"
