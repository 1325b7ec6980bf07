"""What a training gave, for people and programs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

    from .finalists import SearchReport


@dataclass(frozen=True)
class StageReport:
    """One stage.

    Attributes:
        name: of the stage.
        task: of the stage.
        steps: optimizer steps; 0 where the model was given.
        seconds: spent training, those before an interruption not counted.
        metrics: on the test part, empty where there is none.
        layers: name of a matrix of the encoder -> its share of zeros.
        sparsity: share of zeros of all these weights together.
        quantized: names of the matrices whose values are integers times scales.
        new_parameters: parameters that began random, for the checkpoint has none: a head.
        history: the trainer's log, a dict an entry.
        development: of the recipe's last stage, metrics on the development part, empty where there
            is none.
    """

    name: str
    task: str
    steps: int
    seconds: float
    metrics: dict[str, float]
    layers: dict[str, float]
    sparsity: float
    quantized: tuple[str, ...] = ()
    new_parameters: tuple[str, ...] = ()
    history: tuple[dict[str, float], ...] = ()
    development: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StageReport:
        """Take back what ``asdict`` gave and JSON kept."""
        lists = {key: tuple(data[key]) for key in ("quantized", "new_parameters", "history")}
        return cls(**{**data, **lists})


@dataclass(frozen=True)
class PaperFiles:
    """The result once more, in the files that its paper's own code would have left.

    Attributes:
        directory: where they are.
        layout: which files, as ``export_paper_layout`` names them.
        finalise: what ``convert`` and ``inspect`` must be told on opening them.
    """

    directory: Path
    layout: str
    finalise: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "directory": str(self.directory)}

    def commands(self) -> list[str]:
        """Command lines that open them."""
        said = [
            part
            for pair in self.finalise.items()
            for part in ("--finalise", "=".join(map(str, pair)))
        ]
        place = str(self.directory)
        return [
            shlex.join(["sparse-runtime", "inspect", place, *said]),
            shlex.join(["sparse-runtime", "convert", place, f"{place}-packed", *said]),
        ]


@dataclass(frozen=True)
class TrainReport:
    """A whole recipe.

    Attributes:
        recipe: its name.
        out_dir: where the result is.
        seed: of the run.
        stages: one a stage.
        seconds: of everything, evaluation and writing too.
        paper: the result in its paper's own files too, where that was asked for.
        search: how its formats were found, where that was asked for.
    """

    recipe: str
    out_dir: Path
    seed: int
    stages: tuple[StageReport, ...]
    seconds: float
    paper: PaperFiles | None = None
    search: SearchReport | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Of the result on the test part."""
        return self.stages[-1].metrics

    @property
    def layers(self) -> dict[str, float]:
        """Of the result, name of a matrix -> its share of zeros."""
        return self.stages[-1].layers

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        paper = None if self.paper is None else self.paper.to_dict()
        search = None if self.search is None else self.search.to_dict()
        plain = replace(self, paper=None, search=None)
        changed = {"out_dir": str(self.out_dir), "metrics": self.metrics}
        return {**asdict(plain), **changed, "paper": paper, "search": search}

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table

        table = Table(title=f"{self.recipe}, seed {self.seed} -> {self.out_dir}")
        for column in ("stage", "task", "steps", "seconds", "zeros", "test"):
            table.add_column(column, justify="left" if column in ("stage", "task") else "right")
        begun = any(stage.new_parameters for stage in self.stages)
        if begun:
            table.add_column("began random")
        for stage in self.stages:
            metrics = ", ".join(f"{name} {value:.4f}" for name, value in stage.metrics.items())
            table.add_row(
                stage.name,
                stage.task,
                str(stage.steps) if stage.steps else "given",
                f"{stage.seconds:.1f}",
                f"{stage.sparsity:.1%}",
                metrics or "-",
                *([", ".join(stage.new_parameters) or "-"] if begun else []),
            )
        return Group(*([] if self.search is None else [self.search]), table)
