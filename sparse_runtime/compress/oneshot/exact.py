"""The optimal brain surgeon itself, one weight at a time: slow, exact, for small matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ...spec import Structure
from ..patterns import Pattern
from .problem import Problem, Solution

_MOST_NUMBERS = 1 << 27
"""Numbers in the inverses of all rows together: 1 GiB in float64."""


def exact_obs(problem: Problem, pattern: Pattern) -> Solution:
    """Remove the least salient weight of the whole matrix, update its row exactly, repeat.

    After each step a row's remaining weights are the least-squares optimum of their support, and
    its inverse hessian is that of the support (Optimal Brain Compression, Frantar and Alistarh
    2022). Costs in^2 an update and in^2 numbers a row.

    Args:
        problem: target [out, in] and hessian; computed with in float64.
        pattern: unstructured or N:M.

    Raises:
        ValueError: a block pattern, or a matrix that is too large.
    """
    structure = pattern.structure
    rows, cols = problem.target.shape
    if structure.kind == "block":
        raise ValueError(
            f"method 'exact_obs': removes single weights, got {structure}; use 'obs' or 'alps'"
        )
    if rows * cols * cols > _MOST_NUMBERS:
        raise ValueError(
            f"method 'exact_obs': is for small matrices, got [{rows}, {cols}], whose inverse "
            "hessians do not fit; use 'obs' or 'alps'"
        )
    weight = problem.target.double().clone()
    inverses = problem.inverse().expand(rows, cols, cols).clone()
    mask = torch.ones(rows, cols, dtype=torch.bool)
    for _ in range(_removals(pattern, rows, cols)):
        saliency = weight.square() / inverses.diagonal(dim1=1, dim2=2)
        allowed = mask if structure.kind != "nm" else mask & _may_lose(mask, structure)
        saliency = torch.where(allowed, saliency, torch.inf)
        # The highest index of equals goes.
        last = rows * cols - 1 - int(saliency.flatten().flip(0).argmin())
        row, col = divmod(last, cols)
        remove(weight[row], inverses[row], col)
        mask[row, col] = False
    return Solution(weight.to(problem.target) * mask, mask)


def remove(weight: Tensor, inverse: Tensor, col: int) -> None:
    """Remove one weight of a row in place, with the optimal update of the others.

    ``w -= w_q / [H^-1]_qq * H^-1_:q``, and ``H^-1 -= H^-1_:q H^-1_q: / [H^-1]_qq`` is the inverse
    of the hessian without row and column q (Hassibi and Stork 1993).

    Args:
        weight: [in].
        inverse: [in, in], the inverse hessian of the weights that are left.
        col: q; its weight is 0 afterwards, and its row and column of ``inverse`` those of the
            identity.
    """
    line = inverse[col].clone()
    weight -= weight[col] / line[col] * line
    inverse -= torch.outer(line, line) / line[col]
    weight[col] = 0.0
    # Rounding left nearly 0 there.
    inverse[col], inverse[:, col], inverse[col, col] = 0.0, 0.0, 1.0


def _removals(pattern: Pattern, rows: int, cols: int) -> int:
    structure = pattern.structure
    if structure.kind != "nm":
        return round(pattern.final_sparsity * rows * cols)
    sizes = [min(structure.m, cols - start) for start in range(0, cols, structure.m)]
    return rows * sum(max(0, size - structure.n) for size in sizes)


def _may_lose(mask: Tensor, structure: Structure) -> Tensor:
    """Weights whose N:M group still keeps more than N."""
    group = torch.arange(mask.shape[1]) // structure.m
    count = mask.new_zeros(len(mask), int(group[-1]) + 1, dtype=torch.int64)
    count.scatter_add_(1, group.expand(len(mask), -1), mask.long())
    return count[:, group] > structure.n
