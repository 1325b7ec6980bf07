"""Better values for a weight whose mask is settled: least squares, then integers by turns."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem
from .quantizer import Grid

_BLOCK = 128


def refit(
    problem: Problem, weight: Tensor, mask: Tensor, *, steps: int = 50, tolerance: float = 1e-5
) -> Tensor:
    """The kept weights that give the least error, by conjugate gradients from ``weight``.

    All rows at once, each restricted to its own kept columns and preconditioned by the hessian's
    diagonal (as ALPS does once its mask is settled, Meng et al. 2024). No step raises the error.

    Args:
        problem: target [out, in] and hessian.
        weight: [out, in], where to start.
        mask: bool [out, in], False where the weight stays zero.
        steps: most iterations.
        tolerance: stop when every row's residual is this share of what it was.
    """
    hessian = problem.hessian.to(problem.target)
    diagonal = hessian.diagonal()
    kept = mask.to(weight)
    solved = weight * kept
    residual = ((problem.target - solved) @ hessian) * kept
    scaled = residual / diagonal
    direction = scaled.clone()
    product = (residual * scaled).sum(1)
    limit = product * tolerance**2
    for _ in range(steps):
        if bool((product <= limit).all()):
            break
        along = (direction @ hessian) * kept
        curvature = (direction * along).sum(1)
        # A row that is solved has no direction left: 0 / 0.
        size = torch.where(curvature > 0, product / curvature, 0.0).unsqueeze(1)
        solved += size * direction
        residual -= size * along
        scaled = residual / diagonal
        following = (residual * scaled).sum(1)
        turn = torch.where(product > 0, following / product, 0.0).unsqueeze(1)
        direction = scaled + turn * direction
        product = following
    return solved


def polish(
    problem: Problem, weight: Tensor, mask: Tensor, grid: Grid, *, passes: int = 2
) -> Tensor:
    """Move one integer of every row at a time to where it gives the least error.

    Cyclic coordinate descent over the columns: with the others fixed, the best value of a weight
    is its Newton step, rounded to the grid. No move raises the error.

    Args:
        problem: target [out, in] and hessian.
        weight: [out, in], on the grid.
        mask: bool [out, in], False where the weight stays zero.
        grid: the values to choose from.
        passes: most passes over the columns; it ends early when nothing moves.
    """
    hessian = problem.hessian.to(problem.target)
    weight = weight.clone()
    for _ in range(passes):
        before = weight.clone()
        for start in range(0, weight.shape[1], _BLOCK):
            part = slice(start, start + _BLOCK)
            gradient = (weight - problem.target) @ hessian[:, part]
            local = hessian[part, part]
            for j in range(local.shape[0]):
                column = start + j
                old = weight[:, column]
                free = old - gradient[:, j] / local[j, j]
                scale = grid.expanded[:, column]
                new = (free / scale).round().clamp(-grid.limit, grid.limit) * scale
                new = torch.where(mask[:, column], new, 0.0)
                gradient += torch.outer(new - old, local[j])
                weight[:, column] = new
        if torch.equal(before, weight):
            break
    return weight
