"""The best formats of a search, each trained by the recipe; the best of them is the result."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..oneshot.allocation import CostTable
from ..oneshot.layer_format import LayerFormat
from ..targets import COMPONENTS
from ..writing import RECORD_FILE
from .format_search import FormatSearch, rank, search_formats, searched_stages, with_formats
from .layer_mixes import mix_costs
from .models import load_model
from .one_shot_scores import Configuration, Found, Scored
from .recipe import MODEL, Recipe, Stage
from .report import StageReport
from .stage_run import Diverged, Pace, StageRunner
from .task_data import evaluation_texts, training_texts
from .workspace import FOUND, Workspace, is_unfinished, write_text

if TYPE_CHECKING:
    from rich.table import Table

TABLE = "search.json"
_CALIBRATION = 256
"""Training texts that layers are solved for under a target."""


@dataclass(frozen=True)
class SearchReport:
    """How formats were found.

    Attributes:
        wanted: what was searched for.
        found: candidates and their one-shot scores.
        trained: of each that was trained, the best by its score first, the metrics on the
            development part; None of one whose training diverged.
        chosen: which of these is the result, from 0.
    """

    wanted: FormatSearch
    found: Found
    trained: tuple[dict[str, float] | None, ...]
    chosen: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, of the candidates those that were trained."""
        found = self.found.to_dict()
        best = found.pop("candidates")[: len(self.trained)]
        return {
            **self.wanted.to_dict(),
            **found,
            "scored": len(self.found.scored),
            "trained": [
                {**row, "development": metrics}
                for row, metrics in zip(best, self.trained, strict=True)
            ],
            "chosen": self.chosen,
        }

    def __rich__(self) -> Table:
        from rich.table import Table

        fitting = "" if self.found.fitting is None else f"{self.found.fitting} within the limit, "
        table = Table(
            title=f"formats under {self.wanted.limit}: {self.found.possible} candidates, {fitting}"
            f"{len(self.found.scored)} scored, {len(self.trained)} trained"
        )
        for column in ("formats", "cost", "score", "development"):
            table.add_column(column, justify="left" if column == "formats" else "right")
        for number, (one, metrics) in enumerate(zip(self.found.scored, self.trained, strict=False)):
            table.add_row(
                _in_words(one.configuration) + (" *" if number == self.chosen else ""),
                f"{one.cost:.4g}",
                f"{one.score:.4f}",
                "diverged" if metrics is None else _in_numbers(metrics),
            )
        return table


@dataclass(frozen=True)
class Winner:
    """What is kept.

    Attributes:
        model: its directory.
        stages: one a stage, those before the search too.
        report: of the search.
    """

    model: Path
    stages: tuple[StageReport, ...]
    report: SearchReport


def check_search(wanted: FormatSearch, runner: StageRunner) -> None:
    """Refuse before any training what could not be searched for.

    Raises:
        ValueError: the recipe cannot train what is found, or the data has no development part
            that says how good a model is.
    """
    recipe = runner.recipe
    first = _first(recipe)
    _check_given(runner, recipe.stages[first:])
    _check_head(runner, recipe.stages[first])
    for stage in (recipe.stages[first], recipe.stages[-1]):
        if evaluation_texts(stage, runner.data.dev, runner.tokenizer) is None:
            raise ValueError(
                f"search (--search): needs a development part to choose by, with what task "
                f"{stage.task} is scored on; add dev.csv to the data's folder, or give a share of "
                "the training part with --dev 0.1"
            )
    each: list[Configuration] = [{part: choice for part in COMPONENTS} for choice in wanted.options]
    mixed: Configuration = dict[str, LayerFormat](
        zip(COMPONENTS, itertools.cycle(wanted.options), strict=False)
    )
    _check_all([*each, mixed], runner, runner.given)


def train_found(
    wanted: FormatSearch, runner: StageRunner, workspace: Workspace, pace: Pace
) -> Winner:
    """Train up to the first stage that formats matter to, search, train the best, choose.

    Each step that is done already is taken as it is.

    Raises:
        ValueError: nothing is within the limit, or the recipe cannot train what is the best.
        Diverged: every candidate did; of the first.
    """
    recipe, first = runner.recipe, _first(runner.recipe)
    searched = recipe.stages[first:]
    before = [stage for stage in runner.stages if stage not in searched]
    file = workspace.folder / FOUND
    if not file.is_file():
        costs = _costs(wanted, runner, pace)
        for stage in before:
            runner.stage(stage, workspace, pace)
        found = _search(wanted, runner, costs, workspace, pace)
        write_text(file, json.dumps(found.to_dict()))
    # A measured latency comes out otherwise the next time: what was found is what is gone on with.
    found = Found.from_dict(json.loads(file.read_text(encoding="utf-8")))
    given = {stage.name: _model(stage.name, runner, workspace) for stage in before}
    best = found.scored[: wanted.top]
    _check_all([one.configuration for one in best], runner, given)
    trained: dict[int, tuple[Path, list[StageReport]]] = {}
    failures: list[Diverged] = []
    for number, one in enumerate(best):
        try:
            trained[number] = _train(number, one, given, runner, workspace, pace)
        except Diverged as error:
            warnings.warn(f"left out: {_in_words(one.configuration)}: {error}", stacklevel=3)
            failures.append(error)
    if not trained:
        raise failures[0]
    metrics = {number: stages[-1].development for number, (_, stages) in trained.items()}
    task = recipe.stages[-1].task
    chosen = min(trained, key=lambda number: (*rank(task, metrics[number]), number))
    folder, stages = trained[chosen]
    report = SearchReport(wanted, found, tuple(map(metrics.get, range(len(best)))), chosen)
    _record(folder, report)
    earlier = tuple(runner.stage(stage, workspace, pace) for stage in before)
    return Winner(folder, (*earlier, *stages), report)


def _first(recipe: Recipe) -> int:
    names = searched_stages(recipe)
    return min(i for i, stage in enumerate(recipe.stages) if stage.name in names)


def _check_given(runner: StageRunner, searched: Sequence[Stage]) -> None:
    for stage in searched:
        if stage.name in runner.given:
            raise ValueError(
                f"search (--search): a model is given for stage {stage.name!r} (--stage), which is "
                f"trained anew for each candidate; expected models for stages before "
                f"{searched[0].name!r} alone: leave it out"
            )


def _check_head(runner: StageRunner, stage: Stage) -> None:
    """Scores of a random head say nothing."""
    start = runner.recipe.start_of(stage)
    if start == MODEL or start in runner.given:
        model = load_model(runner.given.get(start, runner.source), stage.task, runner.data)
        lacking = list(model.new_parameters)
    else:
        (earlier,) = (one for one in runner.recipe.stages if one.name == start)
        lacking = ["its head"] if stage.task not in (earlier.task, "embedding") else []
    if lacking:
        raise ValueError(
            f"search (--search): stage {stage.name!r} starts from {start!r}, without a head for "
            f"task {stage.task} ({lacking[0]} would be random), whose scores say nothing; give a "
            "model of that task, or a recipe that trains one before"
        )


def _check_all(
    configurations: Iterable[Configuration], runner: StageRunner, given: dict[str, Path]
) -> None:
    for one in configurations:
        try:
            _runner(runner, one, given).check()
        except ValueError as error:
            raise ValueError(f"search (--search): with {_in_words(one)}: {error}") from None


def _costs(wanted: FormatSearch, runner: StageRunner, pace: Pace) -> CostTable | None:
    """Of a target, before anything is trained: it may be one that nothing meets."""
    if wanted.ratio is not None:
        return None
    stage = runner.recipe.stages[_first(runner.recipe)]
    model = load_model(runner.source, stage.task, runner.data).eval()
    (*_, quantization) = (one.quantization for one in runner.recipe.stages if one.quantization)
    return mix_costs(model, wanted.plan(pace.progress, quantization.measured_as))


def _search(
    wanted: FormatSearch,
    runner: StageRunner,
    costs: CostTable | None,
    workspace: Workspace,
    pace: Pace,
) -> Found:
    stage = runner.recipe.stages[_first(runner.recipe)]
    model = load_model(
        _model(runner.recipe.start_of(stage), runner, workspace), stage.task, runner.data
    )
    part = evaluation_texts(stage, runner.data.dev, runner.tokenizer)
    assert part is not None  # as check_search has seen
    texts = training_texts(replace(stage, augment=None), runner.data, runner.tokenizer, runner.seed)
    return search_formats(
        wanted,
        # Layers are solved on the CPU.
        model if wanted.ratio is None else model.to(runner.device),
        part,
        stage.task,
        pooling=runner.pooling,
        calibration=texts.first(_CALIBRATION),
        costs=costs,
        state=workspace.folder,
        progress=pace.progress,
    )


def _train(
    number: int,
    one: Scored,
    given: dict[str, Path],
    runner: StageRunner,
    workspace: Workspace,
    pace: Pace,
) -> tuple[Path, list[StageReport]]:
    """One candidate, in a workspace of its own inside that of the whole."""
    place = workspace.folder / f"candidate-{number}"
    own = Workspace(place, {}, resume=is_unfinished(place))
    trainer = _runner(runner, one.configuration, given)
    searched = [stage for stage in trainer.stages if stage.name not in given]
    stages = [trainer.stage(stage, own, pace) for stage in searched]
    return own.model(trainer.recipe.stages[-1].name), stages


def _runner(runner: StageRunner, formats: Configuration, given: dict[str, Path]) -> StageRunner:
    """The same, of a recipe that trains these formats."""
    recipe = with_formats(runner.recipe, formats)
    return StageRunner(runner.source, recipe, runner.data, runner.seed, runner.device, given)


def _model(name: str, runner: StageRunner, workspace: Workspace) -> Path:
    if name == MODEL:
        return runner.source
    return runner.given.get(name) or workspace.model(name)


def _record(folder: Path, report: SearchReport) -> None:
    """Say in the result how it was chosen, and list all that was scored beside it."""
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    said = {**record, "search": report.to_dict()}
    write_text(folder / RECORD_FILE, json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / TABLE, json.dumps(report.found.to_dict()) + "\n")


def _in_numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _in_words(configuration: Configuration) -> str:
    """Formats, each with the parts that have it, or how many layers these are."""
    parts: dict[str, list[str]] = {}
    for part, choice in configuration.items():
        parts.setdefault(str(choice), []).append(part)
    few = len(configuration) <= 6
    return "; ".join(
        f"{choice}: {', '.join(names) if few else f'{len(names)} layers'}"
        for choice, names in parts.items()
    )
