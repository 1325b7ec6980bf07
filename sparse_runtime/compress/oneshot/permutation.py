"""Reordering of channels that leaves a model's function as it is, so that a pattern keeps more.

Exact by construction, up to the order in which floats are summed: a feed-forward neuron is a row of
``ffn_in`` and a column of ``ffn_out``; a channel of a head's values is a row of ``value`` and a
column of ``attention_output``, and may trade places with the channels of its head; a channel of
queries and keys is a row of both, whose products are summed; heads may trade places as wholes.

The idea of permuting before 2:4 is that of Pool and Yu, "Channel Permutations for N:M Sparsity"
(NeurIPS 2021); the search is :mod:`.channel_search`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from tqdm import tqdm

from ..patterns import Pattern
from ..targets import Component, EncoderLayer, layers
from .channel_search import ROUNDS, BlockObjective, NmObjective, search_order

Part = Literal["neurons", "values", "queries"]

# Those whose rows are the channels, and the one whose columns are.
_PRODUCERS: dict[Part, tuple[Component, ...]] = {
    "neurons": ("ffn_in",),
    "values": ("value",),
    "queries": ("query", "key"),
}
_READER: dict[Part, Component] = {"neurons": "ffn_out", "values": "attention_output"}
_THRESHOLDS = 3
"""How often the energy of the last kept block is taken anew."""


@dataclass(frozen=True)
class Kept:
    """What a pattern keeps of one matrix before and after its channels were reordered.

    Attributes:
        name: of the matrix' module.
        before: share of the sum of squared scores, from 0 to 1.
        after: the same, afterwards.
    """

    name: str
    before: float
    after: float


def permute(
    model: nn.Module,
    pattern: Pattern,
    *,
    importance: Mapping[str, Tensor] | None = None,
    rounds: int = ROUNDS,
    seconds: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> list[Kept]:
    """Reorder channels in place for a pattern; the model computes what it did.

    Scores are magnitudes, times the norm of each input where it is given. N:M and blocks of several
    columns look at the columns of ``attention_output`` and ``ffn_out``, blocks of several rows at
    the rows of the others. An order that keeps less than the one there is, is not taken.

    Args:
        model: a transformers encoder of a family that ``layers`` knows.
        pattern: N:M or blocks.
        importance: module name -> [in], the norm of each input of a linear layer (Wanda's). Inputs
            move with the channels: take them anew afterwards.
        rounds: assignments to solve for each set of channels, at most.
        seconds: bound of each search; results then depend on the machine's speed.
        seed: of the searches.
        progress: show a progress bar; None shows it where stderr is a terminal.

    Returns:
        One entry for each matrix in whose order something was searched.

    Raises:
        ValueError: the pattern is unstructured, which no order changes.
    """
    if pattern.structure.kind == "unstructured":
        raise ValueError(
            "pattern unstructured: keeps the same weights in every order of the channels; leave "
            "the permutation out, or give N:M or blocks"
        )
    disable = None if progress is None else not progress
    head_size = head_size_of(model)
    # MPNet's attention biases are stated head by head.
    fixed_heads = any("relative_attention_bias" in name for name, _ in model.named_modules())
    found: list[Kept] = []
    for layer in tqdm(layers(model), desc="permuting", unit="layer", disable=disable):
        for part in ("neurons", "values", "queries"):
            size = 1 if part == "neurons" else head_size
            search = _Search(layer, part, size, pattern, importance or {}, fixed_heads)
            found += search.run(rounds, seconds, seed)
    return found


def reorder(layer: EncoderLayer, part: Part, order: Tensor) -> None:
    """Put channels of a layer in another order, in place.

    Args:
        layer: whose channels.
        part: "neurons" of the feed-forward; "values", the channels of the heads' values and what
            reads them; "queries", the channels of queries and keys.
        order: int64 [channels], the old position of each new one. For "values" and "queries" it
            must keep each head's channels together, and "queries" must not move heads: whoever
            moves heads gives both parts the same order of heads.

    Raises:
        ValueError: the order is no permutation of the channels.
    """
    producers = [layer.linears[name] for name in _PRODUCERS[part]]
    channels = producers[0].out_features
    if not torch.equal(order.sort().values, torch.arange(channels)):
        raise ValueError(f"order: expected a permutation of {channels} channels")
    with torch.no_grad():
        for producer in producers:
            producer.weight.copy_(producer.weight[order])
            if producer.bias is not None:
                producer.bias.copy_(producer.bias[order])
        if part in _READER:
            reader = layer.linears[_READER[part]]
            reader.weight.copy_(reader.weight[:, order])


def reorder_heads(layer: EncoderLayer, heads: Tensor, head_size: int) -> None:
    """Put whole heads in another order: queries, keys, values and what reads them.

    Not for models whose attention biases are stated head by head, such as MPNet's.

    Args:
        layer: whose heads.
        heads: int64 [heads], the old position of each new one.
        head_size: features of a head.
    """
    order = _spread(heads, head_size)
    reorder(layer, "queries", order)
    reorder(layer, "values", order)


def head_size_of(model: nn.Module) -> int:
    """Features of a head, by the model's configuration.

    Raises:
        ValueError: the configuration states no heads that divide the hidden size.
    """
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1 or hidden % heads:
        raise ValueError(
            f"config: expected num_attention_heads that divides hidden_size, got {heads} and "
            f"{hidden}"
        )
    return hidden // heads


class _Search:
    """The channels of one part of a layer, and the matrices whose kept scores they decide."""

    def __init__(
        self,
        layer: EncoderLayer,
        part: Part,
        head_size: int,
        pattern: Pattern,
        importance: Mapping[str, Tensor],
        fixed_heads: bool,
    ) -> None:
        self._layer, self._part, self._pattern = layer, part, pattern
        self._head_size = head_size
        self._fixed_heads = fixed_heads
        self._norms = {
            part: importance[name].double()
            for part, name in layer.names.items()
            if name in importance
        }
        structure = pattern.structure
        rows = structure.rows if structure.kind == "block" else 1
        cols = structure.cols if structure.kind == "block" else structure.m
        sides = dict.fromkeys(_PRODUCERS[part], rows)
        if part in _READER:
            sides[_READER[part]] = cols
        # Where both sides of a block are more than 1 and differ, the larger decides.
        self._size = max(sides.values())
        self._looked_at = [name for name, side in sides.items() if side == self._size > 1]

    def run(self, rounds: int, seconds: float | None, seed: int) -> list[Kept]:
        if not self._looked_at:
            return []
        before = self._kept()
        best = before
        passes = _THRESHOLDS if self._pattern.structure.kind == "block" else 1
        for _ in range(passes):
            order = self._order(rounds, seconds, seed)
            self._apply(order)
            after = self._kept()
            if sum(after) <= sum(best):
                self._apply(order.argsort())
                break
            best = after
        names = [self._layer.names[name] for name in self._looked_at]
        return [Kept(*numbers) for numbers in zip(names, before, best, strict=True)]

    def _order(self, rounds: int, seconds: float | None, seed: int) -> Tensor:
        """The best order found for what ``_apply`` moves: channels, or whole heads."""
        objectives = [self._objective(name) for name in self._looked_at]
        channels = objectives[0].scores.shape[1]
        if self._part == "neurons":
            return search_order(objectives, rounds=rounds, seconds=seconds, seed=seed)
        if self._moves_heads():
            heads = [_of_heads(objective, self._head_size) for objective in objectives]
            return search_order(heads, rounds=rounds, seconds=seconds, seed=seed)
        order = torch.arange(channels)
        if self._head_size % self._size:
            return order  # groups reach from one head into the next
        count = channels // self._head_size
        for start in range(0, channels, self._head_size):
            one = slice(start, start + self._head_size)
            share = None if seconds is None else seconds / count
            within = [replace(each, scores=each.scores[:, one]) for each in objectives]
            order[one] = start + search_order(within, rounds=rounds, seconds=share, seed=seed)
        return order

    def _apply(self, order: Tensor) -> None:
        if self._moves_heads():
            reorder_heads(self._layer, order, self._head_size)
            order = _spread(order, self._head_size)
        else:
            reorder(self._layer, self._part, order)
        reader = _READER.get(self._part)
        if reader in self._norms:
            self._norms[reader] = self._norms[reader][order]

    def _moves_heads(self) -> bool:
        """Whether groups hold several whole heads; "values" moves them, "queries" come along."""
        return (
            self._part == "values"
            and not self._fixed_heads
            and self._size > self._head_size
            and self._size % self._head_size == 0
        )

    def _scores(self, name: Component) -> Tensor:
        """float64 [out, in], squares."""
        weight = self._layer.linears[name].weight.detach().double()
        return (weight * self._norms[name] if name in self._norms else weight).square()

    def _objective(self, name: Component) -> NmObjective | BlockObjective:
        squares = self._scores(name).float()
        structure = self._pattern.structure
        if structure.kind == "nm":
            return NmObjective(squares, structure.m, structure.n)
        other = structure.cols if name in _PRODUCERS[self._part] else structure.rows
        by_channel = squares.t() if name in _PRODUCERS[self._part] else squares
        energies = pad(by_channel, (0, 0, 0, -by_channel.shape[0] % other))
        energies = energies.unflatten(0, (-1, other)).sum(1)
        whole = pad(energies, (0, -energies.shape[1] % self._size))
        blocks = whole.unflatten(1, (-1, self._size)).sum(-1).flatten()
        dropped = round(self._pattern.final_sparsity * blocks.numel())
        threshold = float(blocks.sort().values[min(dropped, blocks.numel() - 1)])
        return BlockObjective(energies, self._size, threshold)

    def _kept(self) -> list[float]:
        shares = []
        for name in self._looked_at:
            squares = self._scores(name)
            mask = self._pattern.mask(squares.sqrt())
            shares.append(float((squares * mask).sum() / squares.sum().clamp_min(1e-300)))
        return shares


def _of_heads(objective: NmObjective | BlockObjective, head_size: int) -> BlockObjective:
    """What groups of whole heads are worth; only blocks are wider than a head."""
    assert isinstance(objective, BlockObjective)
    energies = objective.scores.unflatten(1, (-1, head_size)).sum(-1)
    return BlockObjective(energies, objective.size // head_size, objective.threshold)


def _spread(units: Tensor, size: int) -> Tensor:
    """int64: positions of the channels of units in a new order."""
    return (units.unsqueeze(1) * size + torch.arange(size)).flatten()
