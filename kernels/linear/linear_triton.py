"""A linear layer in one launch: products, bias, activation, residual, quantization of the result.

One program makes one tile [BLOCK_M tokens, BLOCK_N outputs], or the part of its sums that some of
the inputs give (split-K): parts go to a workspace, and the last program to arrive at a tile adds
them, in their order, and ends it. Which family a weight has decides how its tiles are loaded, and
nothing else.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..dense import dense_triton
from ..dense.layout import ROW_BYTES, DenseWeight
from ..nm import nm_triton
from ..nm.layout import NMWeight, word_of
from ..quantize.target_triton import finish_rows, store_tile
from ..unstructured import unstructured_triton
from ..unstructured.layout import UnstructuredWeight
from .epilogue_triton import dequantize, end
from .operands import Epilogue, Quantized, Target
from .tiles import Config, Workspace

load_dense = dense_triton.load_weight_tile
load_nm = nm_triton.load_weight_tile
load_unstructured = unstructured_triton.load_weight_tile

Weight = DenseWeight | UnstructuredWeight | NMWeight


def kind_of(weight: Weight) -> tuple[str | int, ...]:
    """Which loader a weight has, and what that must know when it is compiled."""
    if isinstance(weight, NMWeight):
        return ("nm", weight.n, weight.m, *word_of(weight.n, weight.m, weight.kept.element_size()))
    return ("dense",) if isinstance(weight, DenseWeight) else ("unstructured",)


REGISTERS = 32
"""How many results a thread holds at a time behind the main loop: more would spill."""


class Floats(NamedTuple):
    """Rows whose products are floats, under the names of ``Quantized``."""

    q: Tensor
    q_stride: int


@triton.jit
def load_tile(
    weight, outputs, inputs, first, out_features, in_features,
    KIND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """A tile [k, n] of a weight of any family, zeros from ``in_features`` on."""
    if KIND[0] == "dense":
        tile = load_dense(weight, outputs, inputs, out_features, in_features, EVEN_K)
    elif KIND[0] == "unstructured":
        tile = load_unstructured(
            weight, outputs, first, out_features, in_features, BLOCK_N, BLOCK_K, EVEN_K
        )
    else:
        tl.static_assert(KIND[0] == "nm", "an unknown family of weights")
        tile = load_nm(
            weight, outputs, first, out_features, in_features,
            KIND[1], KIND[2], KIND[3], KIND[4], BLOCK_N, BLOCK_K, EVEN_K,
        )  # fmt: skip
    return tile


@triton.jit
def tile_of_program(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Which block of tokens and of outputs: GROUP_M blocks of tokens share weights in L2."""
    in_group = GROUP_M * tiles_n
    first = tile // in_group * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    rest = tile % in_group
    return first + rest % height, rest // height


@triton.jit
def end_columns(
    acc, x_sum, rows, first, tokens, out_features, x, epilogue, target,
    ACTIVATION: tl.constexpr, SCHEME: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """From complete sums to stored results, in PARTS of the columns from ``first`` on.

    A thread holds a bias and a scale for each of its columns: in parts, they fit the registers.
    """
    width: tl.constexpr = acc.shape[1]
    if PARTS == 1:
        columns = first + tl.arange(0, width)
        if acc.dtype == tl.int32:
            acc = dequantize(acc, x_sum, rows, columns, tokens, out_features, x, epilogue)
        y = end(acc, rows, columns, tokens, out_features, epilogue, ACTIVATION)
        store_tile(y, rows, columns, tokens, out_features, target, SCHEME)
    else:
        halves = tl.reshape(acc, (acc.shape[0], 2, width // 2))
        left, right = tl.split(tl.permute(halves, (0, 2, 1)))
        end_columns(
            left, x_sum, rows, first, tokens, out_features, x, epilogue, target,
            ACTIVATION, SCHEME, PARTS // 2,
        )  # fmt: skip
        end_columns(
            right, x_sum, rows, first + width // 2, tokens, out_features, x, epilogue, target,
            ACTIVATION, SCHEME, PARTS // 2,
        )  # fmt: skip


@triton.jit
def end_tile(
    acc, x_sum, m, n, rows, tokens, out_features, x, epilogue, target,
    ACTIVATION: tl.constexpr, SCHEME: tl.constexpr, PARTS: tl.constexpr, FINISH_N: tl.constexpr,
):  # fmt: skip
    """From complete sums to a stored tile, and to quantized rows where it is their last."""
    width: tl.constexpr = acc.shape[1]
    end_columns(
        acc, x_sum, rows, n * width, tokens, out_features, x, epilogue, target,
        ACTIVATION, SCHEME, PARTS,
    )  # fmt: skip
    tiles_n = tl.cdiv(out_features, width)
    finish_rows(m, tiles_n, rows, tokens, out_features, target, SCHEME, FINISH_N)


# The number of tokens differs from call to call: one compilation serves all.
@triton.jit(do_not_specialize=["tokens"])
def linear_kernel(
    x, weight, x_tiles, weight_tiles, epilogue, target, workspace,
    tokens, out_features, in_features,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, SCHEME: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr, GROUP_M: tl.constexpr, EVEN_K: tl.constexpr,
    PARTS: tl.constexpr, FINISH_N: tl.constexpr,
):  # fmt: skip
    """One tile, or one split of it. Grid: (tiles, SPLIT_K)."""
    tile, split = tl.program_id(0), tl.program_id(1)
    tiles_m, tiles_n = tl.cdiv(tokens, BLOCK_M), tl.cdiv(out_features, BLOCK_N)
    m, n = tile_of_program(tile, tiles_m, tiles_n, GROUP_M)
    rows = m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = n * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.cdiv(in_features, BLOCK_K)
    first, last = 0, steps
    if SPLIT_K > 1:
        share = tl.cdiv(steps, SPLIT_K)
        first = split * share
        last = tl.minimum(first + share, steps)

    integers: tl.constexpr = x.q.dtype.element_ty == tl.int8
    sums: tl.constexpr = tl.int32 if integers else tl.float32
    acc = tl.zeros((BLOCK_M, BLOCK_N), sums)
    x_sum = tl.zeros((BLOCK_M,), tl.int32)
    inputs = first * BLOCK_K + tl.arange(0, BLOCK_K)
    if x_tiles is None:
        # Rows beyond the last repeat it: a load without a mask, of what nobody stores.
        read = tl.minimum(rows, tokens - 1).to(tl.int64)
        x_at = x.q + read[:, None] * x.q_stride + inputs[None, :]
    for step in range(first, last):
        if x_tiles is not None:
            part = x_tiles.load([m * BLOCK_M, step * BLOCK_K])
            w = weight_tiles.load([n * BLOCK_N, step * BLOCK_K]).T
        else:
            if EVEN_K:
                part = tl.load(x_at)
            else:
                part = tl.load(x_at, mask=(inputs < in_features)[None, :], other=0)
            w = load_tile(
                weight, columns, inputs, step * BLOCK_K, out_features, in_features,
                KIND, BLOCK_N, BLOCK_K, EVEN_K,
            )  # fmt: skip
            x_at += BLOCK_K
            inputs += BLOCK_K
        if integers:
            acc = tl.dot(part, w, acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(part, w, acc, input_precision="ieee")
        if epilogue.weight_zero is not None:
            x_sum += tl.sum(part.to(tl.int32), axis=1)

    if SPLIT_K == 1:
        end_tile(
            acc, x_sum, m, n, rows, tokens, out_features, x, epilogue, target,
            ACTIVATION, SCHEME, PARTS, FINISH_N,
        )  # fmt: skip
    else:
        if epilogue.weight_zero is not None:
            zero = tl.load(epilogue.weight_zero + columns, mask=columns < out_features, other=0)
            acc -= x_sum[:, None] * zero[None, :]
        within = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = workspace.partials + tile.to(tl.int64) * (SPLIT_K * BLOCK_M * BLOCK_N) + within
        tl.store(parts + split * (BLOCK_M * BLOCK_N), acc)
        # Every thread's stores come before the count, which releases them to whoever counts last.
        tl.debug_barrier()
        arrived = tl.atomic_add(workspace.counters + tile, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLIT_K - 1:
            tl.debug_barrier()
            total = tl.load(parts)
            for other in tl.static_range(1, SPLIT_K):
                total += tl.load(parts + other * (BLOCK_M * BLOCK_N))
            tl.store(workspace.counters + tile, 0)
            end_tile(
                total, tl.zeros_like(x_sum), m, n, rows, tokens, out_features, x, epilogue, target,
                ACTIVATION, SCHEME, PARTS, FINISH_N,
            )  # fmt: skip


def descriptors(
    x: Tensor, weight: NamedTuple, config: Config
) -> tuple[TensorDescriptor | None, TensorDescriptor | None]:
    """What Hopper's copy engine (TMA) needs of the input and of a dense weight.

    None where the config does not ask for it, or where a row does not begin at 16 bytes.
    """
    if not config.tma or not isinstance(weight, DenseWeight):
        return None, None
    if x.stride(0) * x.element_size() % ROW_BYTES or x.data_ptr() % ROW_BYTES:
        return None, None
    tiles = weight.tiles
    return (
        TensorDescriptor(x, x.shape, x.stride(), [config.block_m, config.block_k]),
        TensorDescriptor(tiles, tiles.shape, tiles.stride(), [config.block_n, config.block_k]),
    )


def linear(
    x: Quantized | Tensor,
    weight: Weight,
    epilogue: Epilogue,
    activation: str | None,
    target: Target,
    scheme: str,
    config: Config,
    workspace: Workspace,
) -> None:
    """``y = activation(outputs(x w + bias)) + residual``, stored as ``target`` asks.

    Nothing is checked, copied or synchronized: it may run inside of a CUDA graph.

    Args:
        x: ``Quantized`` rows, or float [tokens, in] of the weight's type, features side by side.
        weight: of any of these families.
        epilogue: what happens to the sums; ``weight_scale`` where products are integers.
        activation: a key of ``ACTIVATIONS`` (reference.py) or None.
        target: where results go; its tensors have the layer's outputs as columns.
        scheme: how results are quantized, one of ``SCHEMES``.
        config: tiles and schedule.
        workspace: at least what ``workspace_needs`` says.
    """
    rows = x if isinstance(x, Quantized) else Floats(x, x.stride(0))
    tokens, in_features = rows.q.shape
    stored = target.q if target.floats is None else target.floats
    if tokens == 0 or stored is None:
        return
    out_features = stored.shape[1]
    if workspace.partials is not None:
        kind = torch.int32 if rows.q.dtype == torch.int8 else torch.float32
        workspace = workspace._replace(partials=workspace.partials.view(kind))
    tiles = triton.cdiv(tokens, config.block_m) * triton.cdiv(out_features, config.block_n)
    x_tiles, weight_tiles = descriptors(rows.q, weight, config)
    at_once = REGISTERS * 32 * config.num_warps // config.block_m
    with torch.cuda.device_of(rows.q):
        linear_kernel[tiles, config.split_k](
            rows, weight, x_tiles, weight_tiles, epilogue, target, workspace,
            tokens, out_features, in_features,
            KIND=kind_of(weight), ACTIVATION=activation or "none", SCHEME=scheme,
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            SPLIT_K=config.split_k, GROUP_M=config.group_m,
            EVEN_K=in_features % config.block_k == 0,
            PARTS=max(1, config.block_n // at_once), FINISH_N=max(16, at_once),
            num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=False,
        )  # fmt: skip
