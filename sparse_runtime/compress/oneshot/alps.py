"""A mask and weights together by operator splitting (ALPS, Meng et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..patterns import Pattern
from .problem import Problem

_EVERY = 3
"""Iterations between two looks at how much of the mask still moves."""


def alps_mask(problem: Problem, pattern: Pattern, *, steps: int = 300, rho: float = 0.1) -> Tensor:
    """The mask that ADMM settles on, bool [out, in].

    Splits the problem into least squares without a mask and projection onto the pattern, tied by
    a penalty ``rho`` that grows the faster the less the mask moves; ends when it no longer does.
    Works on columns scaled by the root of the hessian's diagonal, so that projection ranks weights
    by what they contribute.

    Args:
        problem: target [out, in] and hessian.
        pattern: which masks are allowed.
        steps: most iterations.
        rho: the first penalty, relative to a hessian whose diagonal is 1.
    """
    scale = problem.hessian.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(problem.hessian / torch.outer(scale, scale))
    values, vectors = values.to(problem.target), vectors.to(problem.target)
    target = problem.target * scale.to(problem.target)
    pull = ((target @ vectors) * values) @ vectors.T
    mask = pattern.mask(target.abs(), reduce="norm")
    checked = mask
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
    return mask
