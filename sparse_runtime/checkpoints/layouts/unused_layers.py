"""Layers that only training used, left in the file by what saved the whole training model.

- ``fit_dense``: TinyBERT's projection of hidden states to the teacher's size, which SparseBERT
  ("Rethinking Network Pruning", arXiv 2104.08682) keeps in its files and never calls in inference.
- ``layer_transformation``, ``mha_layer_transformation``: the same for CoFi (arXiv 2204.00408).
"""

from __future__ import annotations

from ..draft import Draft
from ..errors import listed
from .base import Layout

_USED_BY = {
    "fit_dense": "SparseBERT",
    "layer_transformation": "CoFi",
    "mha_layer_transformation": "CoFi",
}


def _layers(draft: Draft) -> list[str]:
    """Those of which the file has both halves at the top level, where these models hold them."""
    return [
        layer
        for layer in _USED_BY
        if len(draft.names(rf"{layer}\.(weight|bias)")) == 2
        and len(draft.tensors[f"{layer}.weight"].shape) == 2
    ]


def _recognise(draft: Draft) -> str | None:
    found = _layers(draft)
    return f"layers {listed(found)}" if found else None


def _finalise(draft: Draft) -> None:
    for layer in _layers(draft):
        draft.drop(
            draft.names(rf"{layer}\.(weight|bias)"),
            f"only the training of {_USED_BY[layer]} uses it",
        )
        draft.steps.append(f"dropped {layer}, which only the training of {_USED_BY[layer]} uses")


LAYOUT = Layout("SparseBERT or CoFi training model", _recognise, _finalise)
