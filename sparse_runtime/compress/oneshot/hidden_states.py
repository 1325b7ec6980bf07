"""The calibration texts between two encoder layers: all that a walk holds of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class TextBatch:
    """One batch between two layers.

    Attributes:
        hidden: [batch, tokens, hidden], what the next layer reads.
        mask: bool [batch, tokens], False for padding.
        args: what the layers get besides, such as the attention's mask.
        kwargs: the same by name.
        dense: as ``hidden`` in the unchanged network, or None; the same tensor for as long as
            nothing has changed.
    """

    hidden: Tensor
    mask: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dense: Tensor | None = None

    def run(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """The output of an encoder layer."""
        output = module(hidden, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


class Stop(Exception):
    """Ends a forward pass as soon as what was wanted is there."""


def first_states(
    model: nn.Module,
    first: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    *,
    follow_dense: bool,
) -> list[TextBatch]:
    """What enters the first encoder layer, batch by batch.

    Args:
        model: a transformers encoder, with or without a head.
        first: its first layer.
        batches: inputs, with "attention_mask".
        follow_dense: whether the unchanged network's states are held beside.
    """
    states: list[TextBatch] = []
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise Stop

    handle = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for batch in batches:
            try:
                model(**batch)
            except Stop:
                (hidden, *others), named = caught.pop()
                states.append(
                    TextBatch(
                        hidden,
                        batch["attention_mask"].bool(),
                        tuple(map(_slim, others)),
                        {name: _slim(value) for name, value in named.items()},
                        hidden if follow_dense else None,
                    )
                )
    finally:
        handle.remove()
    return states


def advance(states: list[TextBatch], module: nn.Module, dense: nn.Module | None) -> None:
    """Replace every batch's hidden states by a layer's outputs, one batch after the other.

    Args:
        states: what the layer reads.
        module: the layer as it is now.
        dense: as it was, where the unchanged network is followed.
    """
    same = dense is not None and _equal(module, dense)
    for batch in states:
        together = same and batch.dense is batch.hidden
        batch.hidden = batch.run(module, batch.hidden)
        if together:
            batch.dense = batch.hidden
        elif dense is not None:
            assert batch.dense is not None
            batch.dense = batch.run(dense, batch.dense)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def _slim(value: Any) -> Any:
    """A tensor that repeats itself along a dimension, held once.

    Attention masks have a row a token, all alike, and MPNet's table of distances a copy a text.
    """
    if not isinstance(value, Tensor) or value.ndim < 3:
        return value
    once = value
    for dim in range(value.ndim - 1):
        first = once.narrow(dim, 0, 1)
        if torch.equal(once, first.expand_as(once)):
            once = first
    return value if once.shape == value.shape else once.clone().expand_as(value)
