"""Projections onto a constraint: what ADMM pulls weights towards, and where it ends.

Each is a function of a matrix [out, in]. Sparsity keeps the largest magnitudes, which is the
nearest matrix of the pattern; quantization rounds to the nearest multiple of a scale, which is the
nearest matrix for that scale. Sparsity, then quantization by the scales of what is kept, is the
nearest for these scales where weights are ranked against those of their own scale alone, because on
a grid that is symmetric around 0 the error saved by keeping a weight grows with its magnitude.
Where a ranking crosses scales (unstructured or blocks, with row or chunk scales) it need not be: a
large weight on a coarse grid may save less than a small one on a fine grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ....formats import cast_values, project
from ....spec import INTEGER_RANGES, Structure, ValueSpec

Projection = Callable[[Tensor], Tensor]
Scale = Literal["max", "search"]

# Scales tried from the largest magnitude's own downwards, as shares of it.
_SHARES = tuple(1 - 0.01 * step for step in range(80))


@dataclass(frozen=True)
class ToPattern:
    """Nearest matrix of a structure.

    Attributes:
        structure: N:M, unstructured or block.
        sparsity: share of weights or blocks that become 0; None for N:M.
    """

    structure: Structure
    sparsity: float | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out, in]."""
        return project(weight, self.structure, self.sparsity)


@dataclass(frozen=True)
class ToIntegers:
    """Nearest multiples of the scales that weights share.

    Attributes:
        values: int8 or int4, and which weights share a scale.
        scale: "max" gives the largest magnitude the end of the range, as packing does; "search"
            tries smaller ones and takes for each group that of the least squared error.
    """

    values: ValueSpec
    scale: Scale = "max"

    def __post_init__(self) -> None:
        if not self.values.is_integer:
            raise ValueError(f"projection: expected int8 or int4 values, got {self.values.dtype}")
        if self.scale not in ("max", "search"):
            raise ValueError(f"scale {self.scale!r}: expected 'max' or 'search'")

    def __call__(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out, in], float."""
        integers, scales = cast_values(weight, self.values)
        assert scales is not None
        if self.scale == "max":
            return integers.to(weight.dtype) * self._spread(scales, weight).to(weight.dtype)
        return self._searched(weight, self._spread(scales, weight).to(weight.dtype))

    def _searched(self, weight: Tensor, largest: Tensor) -> Tensor:
        limit = INTEGER_RANGES[self.values.dtype][1]
        best = torch.zeros_like(weight)
        least = torch.full_like(self._errors(weight), torch.inf)
        for share in _SHARES:
            scale = largest * share
            rounded = (weight / scale).round().clamp(-limit, limit) * scale
            errors = self._errors(weight - rounded)
            better = self._spread(errors < least, weight)
            best, least = torch.where(better, rounded, best), torch.minimum(errors, least)
        return best

    def _errors(self, difference: Tensor) -> Tensor:
        """Sum of squares of the weights of each scale, [scale_count]."""
        count = self.values.scale_count(difference.shape[0], difference.shape[1])
        owners = self._spread(torch.arange(count, device=difference.device), difference)
        powers = difference.square().flatten()
        return difference.new_zeros(count).index_add(0, owners.flatten(), powers)

    def _spread(self, scales: Tensor, weight: Tensor) -> Tensor:
        """One entry a scale [scale_count] -> that of each weight [out, in]."""
        rows, cols = weight.shape
        return self.values.spread(scales, rows, cols).expand(rows, cols)


@dataclass(frozen=True)
class InTurn:
    """One projection after the other: sparsity first, then quantization of what is kept."""

    steps: tuple[Projection, ...]

    def __call__(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out, in]."""
        for step in self.steps:
            weight = step(weight)
        return weight


def projection(
    structure: Structure | None,
    sparsity: float | None,
    values: ValueSpec | None,
    scale: Scale = "max",
) -> Projection:
    """Build the projection of a pattern, of integers, or of both.

    Raises:
        ValueError: neither is given.
    """
    steps: list[Projection] = []
    if structure is not None and structure.kind != "dense":
        steps.append(ToPattern(structure, sparsity))
    if values is not None:
        steps.append(ToIntegers(values, scale))
    if not steps:
        raise ValueError("projection: expected a pattern, integer values, or both; got neither")
    return steps[0] if len(steps) == 1 else InTurn(tuple(steps))
