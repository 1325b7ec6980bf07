"""Formats of a matrix, and the score of a model that takes them on without any training."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...formats import project
from ...spec import ValueSpec
from ..masks import original_weight
from ..oneshot.layer_format import LayerFormat
from ..patterns import Pattern
from .pruners.projections import ToIntegers

_TWO_OF_FOUR = Pattern.parse("2:4")
_INT8 = ValueSpec("int8", "tensor")
_INT4 = ValueSpec("int4", "chunk", 32)

OPTIONS: tuple[LayerFormat, ...] = (
    LayerFormat(_TWO_OF_FOUR, ValueSpec("fp16")),
    LayerFormat(None, _INT8),
    LayerFormat(None, _INT4),
    LayerFormat(_TWO_OF_FOUR, _INT8),
    LayerFormat(_TWO_OF_FOUR, _INT4),
)
"""The paper's five, with its scales: INT8 one a matrix, INT4 one for 32 rows."""

Configuration = Mapping[str, LayerFormat]
"""Component, or name of a matrix -> its format."""


def bits(choice: LayerFormat, *, index: bool = True) -> float:
    """Bits for each weight of the dense matrix; scales are not counted, as in the paper.

    Args:
        choice: dense or N:M.
        index: count the places of kept values, ``ceil(log2 m)`` bits each.

    Raises:
        ValueError: another pattern, whose index has no such size.
    """
    if choice.pattern is None:
        return float(choice.values.bits)
    structure = choice.pattern.structure
    if structure.kind != "nm":
        raise ValueError(
            f"format {str(choice)!r}: expected dense or N:M under a ratio; search under a target "
            "such as size=0.5x (--search size=0.5x) instead"
        )
    places = (structure.m - 1).bit_length() if index else 0
    return structure.n / structure.m * (choice.values.bits + places)


def projected(choice: LayerFormat, weight: Tensor) -> Tensor:
    """The matrix [out, in] as the format would have it, in its own dtype."""
    if choice.pattern is not None:
        # N:M states its own sparsity, which project does not take again.
        nm = choice.pattern.structure.kind == "nm"
        weight = project(weight, choice.pattern.structure, None if nm else choice.pattern.sparsity)
    if choice.values.is_integer:
        return ToIntegers(choice.values)(weight)
    return weight.to(choice.values.torch_dtype).to(weight.dtype)


@dataclass(frozen=True)
class Scored:
    """A candidate and how good it is.

    Attributes:
        configuration: by component, or by matrix.
        cost: its compression ratio, or what a target counts.
        score: of the projected model without training; higher is better.
    """

    configuration: Configuration
    cost: float
    score: float


@dataclass(frozen=True)
class Found:
    """What a search looked at.

    Attributes:
        possible: candidates that there are.
        fitting: how many of them are within the limit; None where they are too many to count.
        scored: those that were scored, the best first; equal scores by their cost.
    """

    possible: int
    fitting: int | None
    scored: tuple[Scored, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = [
            {
                "formats": {part: str(choice) for part, choice in one.configuration.items()},
                "cost": one.cost,
                "score": one.score,
            }
            for one in self.scored
        ]
        return {"possible": self.possible, "fitting": self.fitting, "candidates": rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Found:
        """Take back :meth:`to_dict`'s form, less how scales are shared."""
        scored = (
            Scored(
                {part: LayerFormat.parse(text) for part, text in row["formats"].items()},
                row["cost"],
                row["score"],
            )
            for row in data["candidates"]
        )
        return cls(data["possible"], data["fitting"], tuple(scored))


def best_first(scored: Sequence[Scored]) -> tuple[Scored, ...]:
    """By score; equal scores by their cost."""
    return tuple(sorted(scored, key=lambda one: (-one.score, one.cost)))


class Scores:
    """Scores that are known, kept in a file as they come.

    Args:
        path: of the file, which may be there already; None keeps them in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, float] = {}
        if path is not None and path.is_file():
            # The last line may have been cut off.
            lines = [
                line
                for line in path.read_text(encoding="utf-8").splitlines(True)
                if line.endswith("\n")
            ]
            path.write_text("".join(lines), encoding="utf-8")
            self._known = dict(json.loads(line) for line in lines)

    def get(self, key: str, evaluate: Callable[[], float]) -> float:
        """The score of a key, by evaluation where it is not known."""
        if key not in self._known:
            self._known[key] = evaluate()
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self._known[key]]) + "\n")
        return self._known[key]


class OneShot:
    """A model whose matrices take on formats and give them back.

    Projected weights are kept: one copy of the matrices for each format that was asked for.

    Args:
        linears: by name.
        evaluate: score of the model as it stands, higher is better.
        scores: those of the same model that are known.
    """

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        evaluate: Callable[[], float],
        scores: Scores | None = None,
    ) -> None:
        self._weights = {name: original_weight(linear) for name, linear in linears.items()}
        self._dense = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._projected: dict[tuple[str, LayerFormat], Tensor] = {}
        self._now: dict[str, LayerFormat | None] = dict.fromkeys(self._weights)
        self._evaluate = evaluate
        self._scores = Scores() if scores is None else scores

    def score(self, choice: Configuration) -> float:
        """Score with a format for each matrix; those that ``choice`` lacks are dense.

        The dense weights are back when it returns, or raises.
        """

        def evaluate() -> float:
            try:
                self._become(choice)
                return self._evaluate()
            finally:
                self._become({})

        said = sorted((name, str(one), one.values.scales) for name, one in choice.items())
        return self._scores.get(hashlib.sha256(repr(said).encode()).hexdigest(), evaluate)

    @torch.no_grad()
    def _become(self, choice: Configuration) -> None:
        for name, weight in self._weights.items():
            wanted = choice.get(name)
            if wanted == self._now[name]:
                continue
            if wanted is not None and (name, wanted) not in self._projected:
                self._projected[name, wanted] = projected(wanted, self._dense[name])
            weight.copy_(self._dense[name] if wanted is None else self._projected[name, wanted])
            self._now[name] = wanted


def losses_alone(
    model: OneShot, parts: Mapping[str, str], options: Sequence[LayerFormat], progress: bool | None
) -> dict[str, dict[LayerFormat, float]]:
    """Part -> format -> what the score falls by when this part alone takes the format.

    Args:
        model: to score.
        parts: name of a matrix -> the part that it belongs to.
        options: to try.
        progress: show a progress bar; None shows it where stderr is a terminal.
    """
    dense = model.score({})
    pairs = list(itertools.product(dict.fromkeys(parts.values()), options))
    losses: dict[str, dict[LayerFormat, float]] = {part: {} for part, _ in pairs}
    for part, option in tqdm(pairs, desc="each alone", disable=hidden(progress)):
        choice = {name: option for name, its in parts.items() if its == part}
        losses[part][option] = dense - model.score(choice)
    return losses


def hidden(progress: bool | None) -> bool | None:
    """tqdm's word for a bar that is not shown; None hides it where stderr is no terminal."""
    return None if progress is None else not progress
