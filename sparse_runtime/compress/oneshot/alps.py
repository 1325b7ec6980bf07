"""A mask and weights together by operator splitting (ALPS, Meng et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..patterns import Pattern
from .problem import Problem
from .refine import refit

_EVERY = 3
"""Iterations between two looks at how much of the mask still moves."""

_REFIT = 10
"""Steps of least squares by which two masks are compared."""


def alps_mask(problem: Problem, pattern: Pattern, *, steps: int = 300, rho: float = 0.1) -> Tensor:
    """The mask that ADMM settles on, bool [out, in].

    Splits the problem into least squares without a mask and projection onto the pattern, tied by
    a penalty ``rho`` that grows the faster the more the mask moves; ends when it no longer does.
    Works on columns scaled by the root of the hessian's diagonal, so that projection ranks weights
    by what they contribute. A small first penalty lets the mask wander; should it end where least
    squares loses more than on the mask it began with, that one is returned.

    Args:
        problem: target [out, in] and hessian.
        pattern: which masks are allowed.
        steps: most iterations.
        rho: the first penalty, relative to a hessian whose diagonal is 1.
    """
    scale = problem.hessian.diagonal().sqrt()
    values, vectors = problem.factors.spectrum(problem.target.dtype)
    target = problem.target * scale.to(problem.target)
    pull = ((target @ vectors) * values) @ vectors.T
    mask = pattern.mask(target.abs(), reduce="norm")
    first = checked = mask
    projected, dual = target * mask, torch.zeros_like(target)
    for step in range(1, steps + 1):
        right = pull - dual + rho * projected
        free = ((right @ vectors) / (values + rho)) @ vectors.T
        shifted = free + dual / rho
        mask = pattern.mask(shifted.abs(), reduce="norm")
        projected = shifted * mask
        dual += rho * (free - projected)
        if step % _EVERY == 0:
            moved = int((mask != checked).sum()) / mask.numel()
            if moved == 0:
                break
            rho *= 1.3 if moved > 0.1 else 1.2 if moved > 0.005 else 1.1
            checked = mask
    return min(first, mask, key=lambda found: _error_on(problem, found))


def _error_on(problem: Problem, mask: Tensor) -> float:
    return problem.error(refit(problem, problem.target * mask, mask, steps=_REFIT))
