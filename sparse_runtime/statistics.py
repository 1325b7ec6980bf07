"""Rank correlation: how alike two vectors order what they are of."""

from __future__ import annotations

import math

from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """float64 [n]: rank of each of ``values`` [n], equal values sharing the mean of their ranks."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[group]


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors [n], with tied ranks averaged.

    NaN where one of them is constant or holds a NaN: then there is no order to compare.
    """
    if bool(a.isnan().any() | b.isnan().any()):
        return math.nan
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = float(x.norm() * y.norm())
    return float(x @ y) / norm if norm else math.nan
