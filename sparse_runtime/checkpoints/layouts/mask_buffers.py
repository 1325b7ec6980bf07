"""Structured contrastive pruning (CAP-f): buffers ``head_mask`` and ``intermediate_mask``.

Source: "From Dense to Sparse: Contrastive Pruning", arXiv 2112.07198. The file holds dense weights;
``head_mask`` [layers, heads] multiplies the attention probabilities and ``intermediate_mask``
[layers, intermediate size] what follows the activation function.
"""

from __future__ import annotations

from ..draft import Draft
from ..errors import listed
from .base import Layout
from .fold import fold_masks

_MASKS = ("head_mask", "intermediate_mask")


def _recognise(draft: Draft) -> str | None:
    found = draft.names(rf"(\w+\.)?({'|'.join(_MASKS)})")
    return f"buffers {listed(found)}" if found else None


def _finalise(draft: Draft) -> None:
    first = draft.names(rf"(\w+\.)?({'|'.join(_MASKS)})")[0]
    prefix = first.removesuffix(first.rpartition(".")[2])
    names = [f"{prefix}{mask}" for mask in _MASKS]
    heads, neurons = (draft.take(name) for name in names)
    fold_masks(draft, heads, neurons, names)


LAYOUT = Layout("CAP structured masks", _recognise, _finalise)
