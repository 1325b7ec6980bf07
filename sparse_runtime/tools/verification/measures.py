"""How far two sets of numbers lie apart: drift, cosine, rank correlation."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class DriftMeter:
    """Distance of changed numbers from the original ones, summed up batch by batch.

    Sums are float64, so that the result does not depend on how the inputs were batched.
    """

    def __init__(self) -> None:
        self._max_abs = torch.zeros((), dtype=torch.float64)
        self._error = torch.zeros((), dtype=torch.float64)
        self._norm = torch.zeros((), dtype=torch.float64)

    def add(self, changed: Tensor, original: Tensor) -> None:
        """Count two float tensors of one shape; empty ones count nothing."""
        if not original.numel():
            return
        difference = (changed.float() - original.float()).abs().cpu()
        # torch.maximum keeps a NaN, where Python's max() may lose it.
        self._max_abs = torch.maximum(self._max_abs, difference.max().double())
        self._error += difference.square().sum(dtype=torch.float64)
        self._norm += original.float().cpu().square().sum(dtype=torch.float64)

    @property
    def max_abs(self) -> float:
        """Largest absolute difference."""
        return float(self._max_abs)

    @property
    def relative(self) -> float:
        """Norm of the differences over norm of the originals; 0 where both are zero."""
        error, norm = math.sqrt(float(self._error)), math.sqrt(float(self._norm))
        if error == 0:
            return 0.0
        return error / norm if norm else math.inf


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row of ``a`` [rows, features] with that of ``b``: float64 [rows].

    Two zero rows are equal, so they count as 1; a zero row and another one as 0.
    """
    a, b = a.double(), b.double()
    norms = a.norm(dim=1), b.norm(dim=1)
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    lengths = norms[0] * norms[1]
    cosine = (a * b).sum(dim=1) / torch.where(lengths == 0, torch.ones_like(lengths), lengths)
    return torch.where(both_zero, torch.ones_like(cosine), cosine.clamp(-1, 1))
