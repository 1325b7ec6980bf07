"""Weights beside masks of 0 and 1, which several layouts have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed

PARAMETERS = ("weight", "bias")


def apply_pairs(draft: Draft, original: str) -> None:
    """Put ``X`` in the place of every ``X_original`` and ``X_mask``, X a weight or a bias.

    Args:
        draft: the checkpoint.
        original: what the layout calls the unmasked tensor, such as "orig" of ``weight_orig``.

    Raises:
        CheckpointError: a half is missing, or does not fit the other.
    """
    for parameter in PARAMETERS:
        dense, mask = f"{parameter}_{original}", f"{parameter}_mask"
        modules = draft.modules(dense)
        if not modules:
            continue
        check_pairs(draft, modules, dense, mask)
        for module in modules:
            apply_mask(draft, f"{module}.{parameter}", dense, mask)
        draft.steps.append(f"{parameter} = {dense} x {mask} in {len(modules)} modules")


def check_pairs(draft: Draft, modules: Sequence[str], original: str, mask: str) -> None:
    """Raise CheckpointError unless every module with one half of a pair has the other."""
    lonely = set(draft.modules(mask)) ^ set(modules)
    if lonely:
        raise CheckpointError(
            f"{draft.where}: expected {original} and {mask} in the same modules, got one alone in "
            f"{listed(lonely)}; the file is incomplete"
        )


def apply_mask(draft: Draft, name: str, original: str, mask: str) -> None:
    """Put ``name`` = original x mask in the place of the two tensors.

    Args:
        draft: the checkpoint.
        name: of the parameter, such as "encoder.layer.0.output.dense.weight".
        original: last part of the unmasked tensor's name, which lies beside it.
        mask: last part of the mask's name: floats, integers or booleans 0 and 1.

    Raises:
        CheckpointError: a half is missing, or the shapes differ. Reading the product raises it for
            a mask with other values.
    """
    module = name.rpartition(".")[0]
    dense, kept = draft.take_float(f"{module}.{original}"), draft.take(f"{module}.{mask}")
    if dense.shape != kept.shape:
        raise CheckpointError(
            f"{module}.{mask}: expected the shape of {original}, {list(dense.shape)}, got "
            f"{list(kept.shape)}; the file is damaged"
        )
    dtype = getattr(torch, dense.dtype)
    draft.put(name, dense.shape, dtype, lambda: _masked(dense, kept, f"{module}.{mask}"))


def _masked(dense: LazyTensor, kept: LazyTensor, name: str) -> Tensor:
    mask = kept.load()
    ones = mask == 1
    if not bool((ones | (mask == 0)).all()):
        raise CheckpointError(f"{name}: expected a mask of 0 and 1, got other values")
    # Not a product: what is pruned becomes 0, and neither -0 nor, from an infinity, NaN.
    return torch.where(ones, dense.load(), 0)
