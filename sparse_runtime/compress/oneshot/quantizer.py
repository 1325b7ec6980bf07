"""Symmetric integer grids for solvers: scales first, then rounding column by column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...formats.quantize import cast_values
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

    def round(self, weight: Tensor, columns: slice = slice(None)) -> Tensor:
        """The nearest grid points of weights [out, columns]."""
        scale = self.expanded[:, columns]
        return (weight / scale).round().clamp(-self.limit, self.limit) * scale

    def integers(self, weight: Tensor) -> Tensor:
        """int8 [out, in] of a weight on the grid."""
        return (weight / self.expanded).round().clamp(-self.limit, self.limit).to(torch.int8)


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
    _, largest = cast_values(weight.float(), spec)
    assert largest is not None
    index = scale_index(weight.shape[0], weight.shape[1], spec)
    grid = _grid(weight, spec, largest, index)
    if not search:
        return grid
    weights = torch.ones_like(weight[0]) if importance is None else importance.to(weight)
    best = weight.new_full(largest.shape, torch.inf)
    chosen = largest.clone()
    for percent in _PERCENTS:
        tried = _grid(weight, spec, largest * (percent / 100), index)
        lost = (tried.round(weight) - weight).square() * weights
        total = torch.zeros_like(best).scatter_add_(0, index.flatten(), lost.flatten())
        better = total < best
        best = torch.where(better, total, best)
        chosen = torch.where(better, tried.scales, chosen)
    return _grid(weight, spec, chosen, index)


def scale_index(rows: int, cols: int, spec: ValueSpec) -> Tensor:
    """int64 [rows, cols]: which scale each weight uses."""
    row = torch.arange(rows).unsqueeze(1).expand(rows, cols)
    if spec.granularity == "tensor":
        return torch.zeros(rows, cols, dtype=torch.int64)
    if spec.granularity == "chunk":
        return row // spec.chunk_rows
    if spec.granularity == "group":
        groups = -(-cols // spec.group_cols)
        return row * groups + torch.arange(cols) // spec.group_cols
    return row.contiguous()


def _grid(weight: Tensor, spec: ValueSpec, scales: Tensor, index: Tensor) -> Grid:
    return Grid(spec, scales, scales[index].to(weight.dtype))
