"""What a measured time depends on beside the number of tokens: a kind of product."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...formats.block import to_blocks
from ...kernels.nm.exact_weight import crowded_slabs
from ...spec import Structure

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.int8: "int8",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
}
"""Types of the operands that kernels multiply."""

DENSITIES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Layers of a pruned model each have a density of their own: times are kept for these."""

RESTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Shares of an unstructured weight that exceed 2:4, likewise."""


class Problem(NamedTuple):
    """One kind of product.

    Attributes:
        dtype: of both operands, a value of ``DTYPE_NAMES``.
        out_features: outputs of all layers that run as one.
        in_features: size of their input.
        structure: structure string (``Structure``), that of all layers or "unstructured".
        density: share of the weights that are not 0, one of ``DENSITIES``; of blocks, where the
            structure has them.
        rest: of an unstructured weight, the share of its slabs (16 outputs, 64 inputs) in which
            some four inputs have more than two nonzeros, one of ``RESTS``; else 0.
        dynamic: whether the result is quantized for its reader by a dynamic scheme, a token each by
            its own range: some families take a second launch for it.
    """

    dtype: str
    out_features: int
    in_features: int
    structure: str
    density: float
    rest: float = 0.0
    dynamic: bool = False

    @property
    def weights(self) -> int:
        """Weights of the dense matrix."""
        return self.out_features * self.in_features

    @property
    def itemsize(self) -> int:
        """Bytes of one weight."""
        return {"int8": 1, "bf16": 2, "fp16": 2, "fp32": 4}[self.dtype]

    @property
    def product(self) -> str:
        """The matrix instructions: "int8", "half" or "fp32"."""
        return "half" if self.dtype in ("bf16", "fp16") else self.dtype


def problem_of(matrix: Tensor, structure: Structure, *, dynamic: bool = False) -> Problem:
    """The kind of product that a stacked weight [out, in] gives; ``dynamic`` as of ``Problem``."""
    out_features, in_features = matrix.shape
    density, rest = 1.0, 0.0
    if structure.kind == "nm":
        density = structure.n / structure.m
    elif structure.kind == "block":
        density = _share((to_blocks(matrix, structure) != 0).any(-1))
    elif structure.kind == "unstructured":
        density = _share(matrix != 0)
        rest = _nearest(RESTS, _share(crowded_slabs(matrix)))
    name, sizes = DTYPE_NAMES[matrix.dtype], (out_features, in_features)
    return Problem(name, *sizes, str(structure), _nearest(DENSITIES, density), rest, dynamic)


def _nearest(known: tuple[float, ...], share: float) -> float:
    return min(known, key=lambda one: abs(one - share))


def _share(mask: Tensor) -> float:
    return float(torch.count_nonzero(mask)) / max(mask.numel(), 1)
