"""The nearest matrix of a structure: keep the largest magnitudes, zero the rest."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..spec import Structure
from .block import from_blocks, to_blocks

_PRUNE = re.compile(
    r"(?P<structure>dense|unstructured|[0-9]+:[0-9]+|block:[^@]+)(@(?P<sparsity>[0-9.]+))?"
)
_FORMS = (
    "expected 'N:M', 'unstructured@SPARSITY' or 'block:RxC@SPARSITY', SPARSITY from 0 to below 1"
)


def parse_prune(text: str, argument: str = "prune") -> tuple[Structure, float | None]:
    """Read "2:4", "unstructured@0.9" or "block:32x32@0.9".

    Args:
        text: one of these.
        argument: what to call it in errors.

    Raises:
        ValueError: it is none of these, the sparsity is not in [0, 1), or it is missing or
            given where the structure already states it.
    """
    match = _PRUNE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{argument} {text!r}: {_FORMS}")
    try:
        structure = Structure.parse(match["structure"])
    except ValueError as error:
        raise ValueError(f"{argument} {text!r}: {error}") from None
    if structure.kind == "dense":
        raise ValueError(f"{argument} 'dense': nothing to prune; leave the argument out")
    stated = match["sparsity"]
    if (structure.kind == "nm") == (stated is not None):
        raise ValueError(f"{argument} {text!r}: {_FORMS}")
    if stated is None:
        return structure, None
    try:
        sparsity = float(stated)
    except ValueError:
        sparsity = math.nan
    if not 0 <= sparsity < 1:
        raise ValueError(f"{argument} {text!r}: the sparsity is a number from 0 to below 1")
    return structure, sparsity


def project(weight: Tensor, structure: Structure, sparsity: float | None = None) -> Tensor:
    """Zero the smallest magnitudes of a matrix [out, in] until it fits ``structure``.

    N:M keeps the N largest magnitudes of each group. Unstructured zeroes the
    ``round(sparsity * size)`` smallest, block the ``round(sparsity * blocks)`` blocks with the
    smallest Euclidean norm. Ties keep the lower index. Without ``sparsity``, dense, unstructured
    and block matrices are returned as they are, for these structures hold any matrix.

    Raises:
        ValueError: ``sparsity`` is outside [0, 1), or given for N:M or dense, which choose none.
    """
    if sparsity is not None and (structure.kind in ("nm", "dense") or not 0 <= sparsity < 1):
        raise ValueError(
            f"sparsity {sparsity}: expected a number from 0 to below 1, for unstructured and block "
            f"only, got it for {structure}"
        )
    if structure.kind == "nm":
        keep = keep_of_groups(_magnitudes(weight), structure)
        return torch.where(keep, weight, torch.zeros_like(weight))
    if sparsity is None:
        return weight.clone()
    if structure.kind == "unstructured":
        keep = keep_largest(_magnitudes(weight), weight.numel() - round(sparsity * weight.numel()))
        return torch.where(keep, weight, torch.zeros_like(weight))
    blocks = to_blocks(weight, structure)
    norms = torch.linalg.vector_norm(blocks.double(), dim=-1)
    keep = keep_largest(norms, norms.numel() - round(sparsity * norms.numel())).unsqueeze(-1)
    kept = torch.where(keep, blocks, torch.zeros_like(blocks))
    return from_blocks(kept, structure, (weight.shape[0], weight.shape[1]))


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Bool mask of the ``count`` largest scores; of equal ones, those of lower index.

    Args:
        scores: any shape, no NaN; indices are those of the flattened tensor.
        count: from 0 to the number of scores.
    """
    flat = scores.flatten()
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # A selection instead of a sort, which is several times slower on whole matrices.
    least = flat.kthvalue(flat.numel() - count + 1).values
    mask = flat > least
    equal = (flat == least).nonzero().flatten()
    mask[equal[: count - int(mask.sum())]] = True
    return mask.view_as(scores)


def keep_of_groups(scores: Tensor, structure: Structure) -> Tensor:
    """Bool mask of the N largest of each M consecutive inputs; of equal ones, the first.

    Args:
        scores: [out, in]; a row's last group may be shorter.
        structure: an N:M one.
    """
    cols, (n, m) = scores.shape[1], (structure.n, structure.m)
    least = -math.inf if scores.is_floating_point() else torch.iinfo(scores.dtype).min
    grouped = pad(scores, (0, -cols % m), value=least).unflatten(1, (-1, m))
    order = grouped.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return keep.flatten(1)[:, :cols].contiguous()


def _magnitudes(weight: Tensor) -> Tensor:
    """|w|; for integers in a wider type, since |-128| is none of int8."""
    return weight.abs() if weight.is_floating_point() else weight.to(torch.int32).abs()
