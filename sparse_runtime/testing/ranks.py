"""Ranks, for rank correlations."""

from __future__ import annotations

from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """float64 [n]: rank of each of ``values`` [n], equal values sharing the mean of their ranks."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[group]
