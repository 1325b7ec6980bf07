"""Which weights a sweep prunes next: optimal brain surgeon's saliencies of weights and groups."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...formats.block import from_blocks
from ...spec import Structure
from ..patterns import Pattern

_MAX_SUBSETS = 128
"""N:M subsets that are compared one by one; beyond, weights are dropped one at a time."""


def weight_saliency(weight: Tensor, inverse: Tensor) -> Tensor:
    """Error that removing each weight alone adds, ``w^2 / [H^-1]_jj``, [out, in].

    That is the optimal brain surgeon's saliency (Hassibi and Stork 1993) without its factor 1/2.
    """
    return weight.square() / inverse.diagonal().to(weight)


def group_saliency(weight: Tensor, inverse: Tensor) -> Tensor:
    """Error that removing all of a row's weights adds, ``w ([H^-1])^-1 w^T``, [out].

    Args:
        weight: [out, k].
        inverse: [k, k], the rows and columns of the inverse hessian that belong to the k inputs.
    """
    factor = torch.linalg.cholesky(inverse).to(weight)
    half = torch.linalg.solve_triangular(factor, weight.T, upper=False)
    return half.square().sum(0)


def block_saliency(weight: Tensor, inverse: Tensor, structure: Structure) -> Tensor:
    """Error that removing each block alone adds, [block_rows, block_cols].

    A block's rows do not disturb each other, so the saliencies of its rows add up.
    """
    columns = []
    for start in range(0, weight.shape[1], structure.cols):
        part = slice(start, start + structure.cols)
        rows = group_saliency(weight[:, part], inverse[part, part])
        columns.append(pad(rows, (0, -len(rows) % structure.rows)).view(-1, structure.rows).sum(1))
    return torch.stack(columns, 1)


def choose_nm(weight: Tensor, inverse: Tensor, structure: Structure) -> Tensor:
    """Keep N of a group's M weights so that removing the others adds the least error.

    Args:
        weight: [out, M]; a matrix' last group may be shorter.
        inverse: [M, M], of the inverse hessian.
        structure: N:M.

    Returns:
        bool [out, M]; of equal choices the one that keeps lower indices.
    """
    size = weight.shape[1]
    dropped = size - min(structure.n, size)
    mask = torch.ones_like(weight, dtype=torch.bool)
    if dropped == 0:
        return mask
    if comb(size, dropped) > _MAX_SUBSETS:
        return _choose_greedily(weight, inverse, dropped)
    # Subsets that drop higher indices come first, and argmin takes the first of equals.
    subsets = list(combinations(range(size), dropped))[::-1]
    error = torch.stack(
        [group_saliency(weight[:, list(s)], inverse[list(s)][:, list(s)]) for s in subsets], 1
    )
    return mask.scatter_(1, torch.tensor(subsets)[error.argmin(1)], False)


def _choose_greedily(weight: Tensor, inverse: Tensor, dropped: int) -> Tensor:
    """Drop the least salient weight of each row, update the row and its inverse, repeat."""
    left = weight.clone()
    inverses = inverse.to(weight).expand(len(weight), -1, -1).clone()
    mask = torch.ones_like(weight, dtype=torch.bool)
    rows = torch.arange(len(weight))
    for _ in range(dropped):
        diagonal = inverses.diagonal(dim1=1, dim2=2)
        error = torch.where(mask, left.square() / diagonal, torch.inf)
        # The highest index of equals goes.
        worst = error.shape[1] - 1 - error.flip(1).argmin(1)
        line = inverses[rows, worst]
        pivot = line[rows, worst]
        left -= (left[rows, worst] / pivot).unsqueeze(1) * line
        inverses -= line.unsqueeze(2) * (line / pivot.unsqueeze(1)).unsqueeze(1)
        mask[rows, worst] = False
        # Rounding must not bring a removed weight back into play.
        inverses[rows, worst, worst] = 1.0
        left[rows, worst] = 0.0
    return mask


Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(weight [out, k], inverse [k, k], first column) -> bool [out, k]"""


def chooser(pattern: Pattern, step: int) -> tuple[Choose, int]:
    """How a sweep chooses, and how many columns it chooses for at a time.

    N:M chooses a group at a time. Other patterns choose ``step`` columns at a time, and reach the
    sparsity in each such range, as SparseGPT does (Frantar and Alistarh 2023).
    """
    structure = pattern.structure
    if structure.kind == "nm":
        return (lambda weight, inverse, start: choose_nm(weight, inverse, structure)), structure.m
    granule = structure.cols if structure.kind == "block" else 1
    step = max(granule, step // granule * granule)

    def choose(weight: Tensor, inverse: Tensor, start: int) -> Tensor:
        if structure.kind == "block":
            scores = block_saliency(weight, inverse, structure)
        else:
            scores = weight_saliency(weight, inverse)
        height = scores.shape[0]
        # Rounded over all ranges so far, so that the whole matrix has the count of the pattern.
        before = start // granule * height
        total = round(pattern.final_sparsity * (before + scores.numel()))
        dropped = total - round(pattern.final_sparsity * before)
        keep = torch.ones(scores.numel(), dtype=torch.bool)
        order = scores.flatten().argsort(descending=True, stable=True)
        keep[order[scores.numel() - dropped :]] = False
        if structure.kind != "block":
            return keep.view_as(scores)
        blocks = keep.view(*scores.shape, 1).expand(-1, -1, structure.rows * structure.cols)
        return from_blocks(blocks.contiguous(), structure, (weight.shape[0], weight.shape[1]))

    return choose, step
