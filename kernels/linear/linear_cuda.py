"""A linear layer by the hand-written kernels of csrc/cuda/mma_linear: dense weights, two of four,
and any as two of four and a rest, on the tensor cores of sm_80 and later, in one launch, and a
second where rows are quantized by their own range (docs/kernels/cuda_library.md)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as pairs
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from .. import cuda_loading
from ..cuda_interface import Kernel, describe_layer
from ..cuda_library import Library
from ..nm.exact_weight import ExactWeight
from .operands import Epilogue, Quantized, Target
from .rules import MACHINES, cycles, known
from .tiles import Config, Workspace

ROW_BYTES = 16
"""Rows of the input begin at multiples of this."""

SLAB = 64
"""Inputs that a kernel multiplies at a time."""

STAGES, WARPS = 4, 4
SPLITS = (1, 2, 4, 8)


class MmaWeight(NamedTuple):
    """A weight in the order that kernels read it in.

    Attributes:
        packed: uint8.
        dtype: of the values: int8, bf16 or fp16.
        structure: "dense", "2:4" or "exact" (kernels/nm/exact_weight.py).
        out_features: outputs.
        in_features: inputs.
        rest: "exact" alone, ``ExactWeight.rest``.
        rest_places: "exact" alone, ``ExactWeight.rest_places``.
        order: the kernels' (``cuda_interface.ORDERS``): "mma", or "hopper" (linear_hopper.py).
    """

    packed: Tensor
    dtype: torch.dtype
    structure: str
    out_features: int
    in_features: int
    rest: Tensor | None = None
    rest_places: Tensor | None = None
    order: str = "mma"

    @property
    def operand(self) -> Tensor | ExactWeight:
        """What the library takes."""
        if self.rest is None or self.rest_places is None:
            return self.packed
        return ExactWeight(self.packed, self.rest, self.rest_places)


class MmaConfig(NamedTuple):
    """Tile and schedule of one launch.

    Attributes:
        block_m: tokens of a tile.
        block_n: outputs of a tile.
        split_k: blocks that share a tile's inputs.
    """

    block_m: int
    block_n: int
    split_k: int = 1


def library() -> Library:
    """The loaded library.

    Raises:
        RuntimeError: there is none.
    """
    found = cuda_loading.load()
    if found.library is None:
        raise RuntimeError(f"the CUDA library: {found.reason}")
    return found.library


def pack(matrix: Tensor, structure: str) -> MmaWeight:
    """Bring a weight [out, in] into the kernels' order, on the device where it lies.

    Args:
        matrix: int8, bf16 or fp16.
        structure: "dense", "2:4" for at most two nonzeros in every four inputs, or "exact" for any
            weight as 2:4 and a rest.

    Raises:
        ValueError: "2:4", and more than two of four inputs are nonzero.
    """
    if structure == "exact":
        exact = library().pack_exact(matrix)
        kinds = (matrix.dtype, structure, matrix.shape[0], matrix.shape[1])
        return MmaWeight(exact.two_of_four, *kinds, exact.rest, exact.rest_places)
    packed = library().pack(matrix, structure)
    return MmaWeight(packed, matrix.dtype, structure, matrix.shape[0], matrix.shape[1])


def kernel_of(weight: MmaWeight, config: MmaConfig) -> Kernel:
    """The kernel of a tile.

    Raises:
        ValueError: the library has none such.
    """
    wanted = (weight.order, weight.dtype, weight.structure, config.block_m, config.block_n)
    kernel = library().by_tile.get(wanted)
    if kernel is None:
        raise ValueError(f"the CUDA library has no kernel for {wanted}")
    return kernel


def workspace_needs(tokens: int, weight: MmaWeight, config: MmaConfig) -> tuple[int, int]:
    """Elements of ``Workspace.partials`` and of ``Workspace.counters``."""
    kernel = kernel_of(weight, config)
    needs = library().workspace_needs(kernel, tokens, weight.out_features, config.split_k)
    return needs.partial_bytes // 4, needs.tile_counters


def candidates(
    product: str, tokens: int, out_features: int, in_features: int, capability: int
) -> list[MmaConfig]:
    """Every configuration that fits, the best first by the rules of the Triton kernels.

    Args:
        product: "int8" or "half" (bf16, fp16).
        tokens: rows.
        out_features: outputs.
        in_features: inputs.
        capability: 80 for sm_80.
    """
    machine = MACHINES[known(capability)]

    def order(config: MmaConfig) -> tuple[float, int]:
        tile = Config(config.block_m, config.block_n, SLAB, config.split_k, WARPS, STAGES)
        cost = cycles(tile, product, tokens, out_features, in_features, machine)
        return cost, -config.block_m * config.block_n

    return sorted(_fitting(in_features), key=order)


TILES = ((128, 128), (64, 64), (16, 64))
"""Tokens and outputs of the kernels' tiles (csrc/cuda/mma_linear/kernels.h)."""


def _fitting(in_features: int) -> Iterator[MmaConfig]:
    slabs = ceil(in_features / SLAB)
    for (block_m, block_n), split in pairs(TILES, SPLITS):
        if split == 1 or slabs >= 2 * split:
            yield MmaConfig(block_m, block_n, split)


def linear(
    x: Quantized | Tensor,
    weight: MmaWeight,
    epilogue: Epilogue,
    activation: str | None,
    target: Target,
    scheme: str,
    config: MmaConfig,
    workspace: Workspace,
) -> None:
    """``y = activation(outputs(x w + bias)) + residual``, stored as ``target`` asks.

    Runs on the current stream, and may be captured in a CUDA graph. Rows that do not begin at
    multiples of 16 bytes are copied first; nothing else is checked, copied or synchronized.

    Args:
        x: ``Quantized`` rows, or float [tokens, in] of the weight's type, features side by side.
        weight: of :func:`pack`.
        epilogue: what happens to the sums; ``weight_zero`` is not supported.
        activation: a key of ``ACTIVATIONS`` (reference.py) or None.
        target: where results go; its tensors have the layer's outputs as columns.
        scheme: how results are quantized, one of ``SCHEMES``.
        config: tile and schedule.
        workspace: at least what :func:`workspace_needs` says.

    Raises:
        ValueError: the weight has zero points.
        RuntimeError: CUDA refuses the launch.
    """
    if epilogue.weight_zero is not None:
        raise ValueError("epilogue.weight_zero: expected None: these kernels take no zero points")
    x = _aligned(x)
    rows = x.q if isinstance(x, Quantized) else x
    if len(rows) == 0:
        return
    kernel = kernel_of(weight, config)
    layer = describe_layer(
        x, weight.operand, weight.out_features, epilogue, activation, target, scheme
    )
    layer.split_k = config.split_k
    if config.split_k > 1:
        assert workspace.partials is not None  # workspace_needs asks for them
        layer.partials = workspace.partials.data_ptr()
        layer.tile_counters = workspace.counters.data_ptr()
    with torch.cuda.device_of(rows):
        library().launch(kernel, layer, rows.device)


def _aligned(x: Quantized | Tensor) -> Quantized | Tensor:
    rows = x.q if isinstance(x, Quantized) else x
    size = rows.element_size()
    if rows.data_ptr() % ROW_BYTES == 0 and rows.stride(0) * size % ROW_BYTES == 0:
        return x
    tokens, features = rows.shape
    unit = ROW_BYTES // size
    stride = ceil(features / unit) * unit
    copy = torch.empty(tokens, stride, dtype=rows.dtype, device=rows.device)[:, :features]
    copy.copy_(rows)
    return x._replace(q=copy, q_stride=stride) if isinstance(x, Quantized) else copy
