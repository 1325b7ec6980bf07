"""Options for a matrix, and the score of a model that takes them on without any training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...formats import project
from ...spec import Structure, ValueSpec
from ..masks import original_weight
from .pruners.projections import ToIntegers


@dataclass(frozen=True)
class Option:
    """What may be done to a matrix.

    Attributes:
        structure: None leaves it dense.
        values: how numbers are written.
    """

    structure: Structure | None
    values: ValueSpec

    def __str__(self) -> str:
        return (
            self.values.dtype if self.structure is None else f"{self.structure} {self.values.dtype}"
        )

    def bits(self, *, index: bool = True) -> float:
        """Bits for each weight of the dense matrix; scales are not counted, as in the paper.

        Args:
            index: count the places of kept values, ``ceil(log2 m)`` bits each.
        """
        if self.structure is None:
            return float(self.values.bits)
        places = (self.structure.m - 1).bit_length() if index else 0
        return self.structure.n / self.structure.m * (self.values.bits + places)

    def project(self, weight: Tensor) -> Tensor:
        """The matrix [out, in] as the option would have it, in its own dtype."""
        kept = weight if self.structure is None else project(weight, self.structure)
        if self.values.is_integer:
            return ToIntegers(self.values)(kept)
        return kept.to(self.values.torch_dtype).to(weight.dtype)


_TWO_OF_FOUR = Structure("nm", n=2, m=4)
_INT8 = ValueSpec("int8", "tensor")
_INT4 = ValueSpec("int4", "chunk", 32)

OPTIONS: tuple[Option, ...] = (
    Option(_TWO_OF_FOUR, ValueSpec("fp16")),
    Option(None, _INT8),
    Option(None, _INT4),
    Option(_TWO_OF_FOUR, _INT8),
    Option(_TWO_OF_FOUR, _INT4),
)
"""The paper's five, with its scales: INT8 one a matrix, INT4 one for 32 rows."""

Configuration = Mapping[str, Option]
"""Component, or name of a matrix -> its option."""


@dataclass(frozen=True)
class Scored:
    """A candidate and how good it is.

    Attributes:
        configuration: by component, or by matrix from :func:`search_layers`.
        cost: its compression ratio, or the total of the costs that were given.
        score: of the projected model without training; higher is better.
    """

    configuration: Configuration
    cost: float
    score: float


class OneShot:
    """A model whose matrices take on options and give them back.

    Projected weights are kept: one copy of the matrices for each option that was asked for.

    Args:
        linears: by name.
        evaluate: score of the model as it stands, higher is better.
    """

    def __init__(self, linears: Mapping[str, nn.Linear], evaluate: Callable[[], float]) -> None:
        self._weights = {name: original_weight(linear) for name, linear in linears.items()}
        self._dense = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._projected: dict[tuple[str, Option], Tensor] = {}
        self._now: dict[str, Option | None] = dict.fromkeys(self._weights)
        self._evaluate = evaluate

    def score(self, choice: Mapping[str, Option | None]) -> float:
        """Score with an option for each matrix; those that ``choice`` lacks are dense.

        The dense weights are back when it returns, or raises.
        """
        try:
            self._become(choice)
            return self._evaluate()
        finally:
            self._become({})

    @torch.no_grad()
    def _become(self, choice: Mapping[str, Option | None]) -> None:
        for name, weight in self._weights.items():
            option = choice.get(name)
            if option == self._now[name]:
                continue
            if option is not None and (name, option) not in self._projected:
                self._projected[name, option] = option.project(self._dense[name])
            weight.copy_(self._dense[name] if option is None else self._projected[name, option])
            self._now[name] = option


def losses_alone(
    model: OneShot, parts: Mapping[str, str], options: Sequence[Option], progress: bool
) -> dict[str, dict[Option, float]]:
    """Part -> option -> what the score falls by when this part alone takes the option.

    Args:
        model: to score.
        parts: name of a matrix -> the part that it belongs to.
        options: to try.
        progress: show a progress bar.
    """
    dense = model.score({})
    pairs = list(itertools.product(dict.fromkeys(parts.values()), options))
    losses: dict[str, dict[Option, float]] = {part: {} for part, _ in pairs}
    for part, option in tqdm(pairs, desc="each alone", disable=not progress):
        choice = {name: option for name, its in parts.items() if its == part}
        losses[part][option] = dense - model.score(choice)
    return losses
