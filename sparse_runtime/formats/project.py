"""The nearest matrix of a structure: keep the largest magnitudes, zero the rest."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..spec import Structure
from .block import from_blocks, to_blocks

_PRUNE = re.compile(r"(?P<structure>[^@]+)(@(?P<sparsity>[0-9.]+))?")


def parse_prune(text: str) -> tuple[Structure, float | None]:
    """Read "2:4", "unstructured@0.9" or "block:32x32@0.9".

    Raises:
        ValueError: the text is none of these, the sparsity is not in [0, 1), or it is missing or
            given where the structure already states it.
    """
    match = _PRUNE.fullmatch(text)
    structure = Structure.parse(match["structure"]) if match else Structure.parse(text)
    if structure.kind == "dense":
        raise ValueError("prune 'dense': nothing to prune; leave the argument out")
    stated = match["sparsity"] if match else None
    if (structure.kind == "nm") == (stated is not None):
        raise ValueError(
            f"prune {text!r}: expected 'N:M', 'unstructured@SPARSITY' or 'block:RxC@SPARSITY'"
        )
    if stated is None:
        return structure, None
    try:
        sparsity = float(stated)
    except ValueError:
        sparsity = math.nan
    if not 0 <= sparsity < 1:
        raise ValueError(f"prune {text!r}: the sparsity is a number from 0 to below 1")
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
        return _project_nm(weight, structure.n, structure.m)
    if sparsity is None:
        return weight.clone()
    if structure.kind == "unstructured":
        keep = _keep_largest(_magnitudes(weight).flatten(), sparsity).view_as(weight)
        return torch.where(keep, weight, torch.zeros_like(weight))
    blocks = to_blocks(weight, structure)
    norms = torch.linalg.vector_norm(blocks.double(), dim=-1)
    keep = _keep_largest(norms.flatten(), sparsity).view(*norms.shape, 1)
    kept = torch.where(keep, blocks, torch.zeros_like(blocks))
    return from_blocks(kept, structure, (weight.shape[0], weight.shape[1]))


def _magnitudes(weight: Tensor) -> Tensor:
    """|w|; for integers in a wider type, since |-128| is none of int8."""
    return weight.abs() if weight.is_floating_point() else weight.to(torch.int32).abs()


def _project_nm(weight: Tensor, n: int, m: int) -> Tensor:
    rows, cols = weight.shape
    grouped = pad(weight, (0, -cols % m)).view(rows, -1, m)
    order = _magnitudes(grouped).argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    kept = torch.where(keep, grouped, torch.zeros_like(grouped))
    return kept.flatten(1)[:, :cols].contiguous()


def _keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """Bool mask that drops the ``round(sparsity * n)`` smallest scores, high indices first."""
    kept = scores.numel() - round(sparsity * scores.numel())
    order = scores.argsort(descending=True, stable=True)
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[order[:kept]] = True
    return mask
