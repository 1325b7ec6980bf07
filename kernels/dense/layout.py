"""Dense weights as the GPU's kernels read them: rows padded to whole 16-byte words."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROW_BYTES = 16
"""Rows begin at multiples of this many bytes: the widest load, and what TMA asks for."""


class DenseWeight(NamedTuple):
    """A matrix [out, in].

    Attributes:
        tiles: int8, bf16, fp16 or fp32 [out, padded in], contiguous; zeros from in on.
    """

    tiles: Tensor


def pack(matrix: Tensor) -> DenseWeight:
    """Pad rows with zeros; every bit stays.

    Args:
        matrix: int8, bf16, fp16 or fp32 [out, in], any strides.
    """
    unit = ROW_BYTES // matrix.element_size()
    outputs, inputs = matrix.shape
    tiles = matrix.new_zeros(outputs, -(-inputs // unit) * unit)
    tiles[:, :inputs] = matrix
    return DenseWeight(tiles)


def unpack(weight: DenseWeight, shape: torch.Size | tuple[int, int]) -> Tensor:
    """What :func:`pack` was given, of this shape [out, in]."""
    return weight.tiles[: shape[0], : shape[1]].contiguous()
