"""Symmetric integer grids for solvers: scales first, then rounding column by column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...formats.quantize import symmetric_scales
from ...spec import INTEGER_RANGES, ValueSpec

_PERCENTS = range(100, 40, -2)
"""Scales tried by the search, in percent of that of the largest weight."""


@dataclass(frozen=True)
class Grid:
    """Where a weight may lie: integers times scales.

    Attributes:
        spec: integer values without zero points.
        scales: float32 [scale_count].
        expanded: [out, in], the scale of every weight.
    """

    spec: ValueSpec
    scales: Tensor
    expanded: Tensor

    @property
    def limit(self) -> int:
        """Largest integer; the smallest is its negative, as ``formats.cast_values`` rounds."""
        return INTEGER_RANGES[self.spec.dtype][1]

    def round(self, weight: Tensor) -> Tensor:
        """The nearest grid points of a weight [out, in]."""
        return (weight / self.expanded).round().clamp(-self.limit, self.limit) * self.expanded


def fit_grid(
    weight: Tensor, spec: ValueSpec, importance: Tensor | None = None, *, search: bool = True
) -> Grid:
    """Choose scales for a weight [out, in] whose zeros are pruned.

    Args:
        weight: float [out, in].
        spec: integer values, any granularity.
        importance: [in], weights of the squared errors, such as the hessian's diagonal.
        search: try smaller scales, down to 0.42 of the largest weight's, and keep for each the one
            with the least weighted squared error; False takes the largest weight's.

    Raises:
        ValueError: the values are floats or have zero points.
    """
    if not spec.is_integer or spec.zero_points:
        raise ValueError(f"values {spec}: expected symmetric integers, int8 or int4")
    largest = symmetric_scales(weight.float(), spec)
    grid = _grid(spec, largest, weight)
    if not search:
        return grid
    weights = torch.ones_like(weight[0]) if importance is None else importance.to(weight)
    index = spec.spread(torch.arange(len(largest)), weight.shape[0], weight.shape[1])
    index = index.expand(weight.shape).flatten()
    best = weight.new_full(largest.shape, torch.inf)
    chosen = largest.clone()
    for percent in _PERCENTS:
        tried = _grid(spec, largest * (percent / 100), weight)
        lost = (tried.round(weight) - weight).square() * weights
        total = torch.zeros_like(best).scatter_add_(0, index, lost.flatten())
        better = total < best
        best = torch.where(better, total, best)
        chosen = torch.where(better, tried.scales, chosen)
    return _grid(spec, chosen, weight)


def _grid(spec: ValueSpec, scales: Tensor, weight: Tensor) -> Grid:
    spread = spec.spread(scales, weight.shape[0], weight.shape[1]).to(weight.dtype)
    return Grid(spec, scales, spread.expand(weight.shape))
