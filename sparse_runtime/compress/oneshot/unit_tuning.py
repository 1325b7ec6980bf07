"""After units have gone: the columns that read the rest, fitted to the outputs that should be."""

from __future__ import annotations

import torch
from torch import Tensor

from .factors import cholesky
from .hessian import InputStatistics

DAMPING = 0.1
"""Measured best of 0.001 and 0.1 on all-MiniLM-L6-v2 (docs/compress/structured.md)."""

LARGEST_SCALE = 10.0
"""Factors beyond it, of either sign, say that a fit has nothing to hold on to (Kwon et al.)."""


def tune_columns(
    name: str,
    weight: Tensor,
    kept: Tensor,
    statistics: InputStatistics,
    *,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor]:
    """Least-squares weights of the kept columns and bias: ``min ||X_kept W^T + b - wanted||^2``.

    Args:
        name: the layer's name in ``statistics.cross``.
        weight: float [out, in] that the statistics were gathered with; the damping draws to it.
        kept: bool [in].
        statistics: of the inputs, and of what the outputs miss.
        damping: ridge towards ``weight``, a share of the mean variance of the kept inputs.

    Returns:
        (float64 [out, in], zero in columns that are not kept; float64 [out], to add to the bias)
    """
    wanted = _wanted_mean(name, weight, statistics)
    products = _products(name, weight, statistics) - torch.outer(statistics.mean, wanted)
    at = kept.nonzero().squeeze(1)
    gram = (statistics.gram / statistics.count)[at][:, at]
    gram -= torch.outer(statistics.mean[at], statistics.mean[at])
    before = weight.double()[:, at].T
    ridge = _add_ridge(gram, damping)
    result = torch.zeros_like(weight, dtype=torch.float64)
    result[:, at] = torch.cholesky_solve(products[at] + ridge * before, cholesky(gram)).T
    return result, wanted - result @ statistics.mean


def tune_scales(
    name: str,
    weight: Tensor,
    kept: Tensor,
    statistics: InputStatistics,
    *,
    damping: float = DAMPING,
) -> Tensor:
    """One least-squares factor for each kept unit: the mask tuning of Kwon et al.

    ``min over m of ||sum_u m_u X_u W_u^T - wanted||^2``; its normal matrix is the product, element
    by element, of the inputs' and the columns' Gram matrices, summed over the features of units.

    Args:
        name: the layer's name in ``statistics.cross``.
        weight: float [out, in] that the statistics were gathered with.
        kept: bool [units], each of ``in / units`` features.
        statistics: of the inputs, and of what the outputs miss.
        damping: ridge towards factors of 1, a share of the normal matrix' mean diagonal.

    Returns:
        float64 [units], zero for units that are not kept.
    """
    double = weight.double()
    units, size = len(kept), weight.shape[1] // len(kept)
    elements = (double.T @ double) * (statistics.gram / statistics.count)
    normal = elements.view(units, size, units, size).sum(dim=(1, 3))
    right = (double.T * _products(name, weight, statistics)).sum(1).view(units, size).sum(1)
    at = kept.nonzero().squeeze(1)
    normal, right = normal[at][:, at], right[at]
    ridge = _add_ridge(normal, damping)
    factors = double.new_zeros(units)
    factors[at] = torch.cholesky_solve((right + ridge).unsqueeze(1), cholesky(normal)).squeeze(1)
    return factors


def _products(name: str, weight: Tensor, statistics: InputStatistics) -> Tensor:
    """float64 [in, out]: mean of input times wanted output, without the bias."""
    products = statistics.gram @ weight.double().T
    if name in statistics.cross:
        products = products + statistics.cross[name]
    return products / statistics.count


def _wanted_mean(name: str, weight: Tensor, statistics: InputStatistics) -> Tensor:
    """float64 [out]: mean of the wanted output, without the bias."""
    wanted = weight.double() @ statistics.mean
    if name in statistics.shift:
        wanted = wanted + statistics.shift[name] / statistics.count
    return wanted


def _add_ridge(matrix: Tensor, damping: float) -> Tensor:
    """Add a share of the mean diagonal to the diagonal, in place; returns what was added."""
    ridge = damping * matrix.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    matrix.diagonal().add_(ridge)
    return ridge
