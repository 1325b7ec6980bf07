"""One pass over a weight's columns that prunes and rounds, and makes up for it further right."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, Solution
from .quantizer import Grid
from .selection import Choose

_LAZY = 128
"""Columns whose updates reach the columns behind them in one product."""


def sweep(
    problem: Problem,
    choose: Choose,
    step: int,
    grid: Grid | None = None,
) -> Solution:
    """Fix columns from left to right; each error is made up for by the columns that are still free.

    With a row's columns 0..j fixed, the best update of the others for an error in column j is the
    optimal brain surgeon's, and the inverse hessians that it needs for every j are the rows of one
    Cholesky factor of the inverse (SparseGPT, Frantar and Alistarh 2023; GPTQ, Frantar et al.
    2023).

    Args:
        problem: target [out, in] and hessian.
        choose: says which weights of a range of columns stay.
        step: columns in a range.
        grid: round what stays to it; None keeps floats.
    """
    weight = problem.target.clone()
    factor = problem.factors.inverse(weight.dtype)
    rows, cols = weight.shape
    mask = torch.ones(rows, cols, dtype=torch.bool)
    length = max(1, _LAZY // step) * step
    for start in range(0, cols, length):
        end = min(start + length, cols)
        part = slice(start, end)
        scale = None if grid is None else grid.expanded[:, part]
        limit = 0 if grid is None else grid.limit
        errors = _sweep_block(
            weight[:, part], factor[part, part], mask[:, part], choose, step, start, scale, limit
        )
        weight[:, end:] -= errors @ factor[part, end:]
    return Solution(weight, mask, None if grid is None else grid.scales)


def fixed(mask: Tensor) -> Choose:
    """A choice that is made already: bool [out, in]."""
    return lambda weight, inverse, start: mask[:, start : start + weight.shape[1]]


def _sweep_block(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor,
    choose: Choose,
    step: int,
    start: int,
    scale: Tensor | None,
    limit: int,
) -> Tensor:
    """Sweep a few columns in place; returns the errors, each over its pivot."""
    errors = torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        if j % step == 0:
            ahead = slice(j, j + step)
            free = factor[ahead, ahead].double()
            # Of the inverse hessian of the columns that are still free, those ahead.
            mask[:, ahead] = choose(weight[:, ahead], free.T @ free, start + j)
        value = torch.where(mask[:, j], weight[:, j], 0.0)
        if scale is not None:
            value = (value / scale[:, j]).round().clamp(-limit, limit) * scale[:, j]
        errors[:, j] = (weight[:, j] - value) / factor[j, j]
        weight[:, j] = value
        weight[:, j + 1 :] -= torch.outer(errors[:, j], factor[j, j + 1 :])
    return errors
