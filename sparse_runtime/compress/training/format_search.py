"""Formats for a recipe: asked for, found by one-shot scores, said in the recipe's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...spec import ActivationSpec
from ..oneshot.allocation import CostTable, Shape, Target
from ..oneshot.layer_format import BY_TOKEN, LayerFormat
from ..oneshot.plan_state import PlanState
from ..oneshot.plans import CANDIDATES, SearchPlan
from ..targets import COMPONENTS, encoder_linears
from .configuration_search import refuse_smaller_than_all, search
from .encoding import EncodedTexts
from .evaluation import EvaluationTexts, evaluate
from .layer_mixes import mix_costs, search_layers
from .one_shot_scores import OPTIONS, Configuration, Found, Scores
from .pruners import PRUNERS
from .recipe import Recipe, Stage, Task
from .sections import Pruning, Quantization
from .workspace import SCORES

_BATCH = 32
_BEST: dict[Task, tuple[str, float]] = {
    "classification": ("accuracy", 1.0),
    "regression": ("spearman", 1.0),
    "embedding": ("spearman", 1.0),
    "masked_lm": ("loss", -1.0),
}


@dataclass(frozen=True)
class FormatSearch:
    """What is searched for.

    Attributes:
        limit: a share of the size in FP32, such as 0.125, chooses a format for each component type,
            the same in every layer, as NxMiFormer does; a target, "size=0.5x", "flops=0.5x" or
            "latency=0.6x", one for each layer, as ``prune_to_target`` does.
        top: how many of the best are trained.
        evaluations: under a share, score only so many candidates; None scores all.
        rows: of the development part that candidates are scored on, from the first; None is all.
        formats: to choose from, such as "2:4 int8"; none takes the paper's five under a share,
            dense and 2:4 in INT8 and INT4 under a target.
        measure: costs for a latency target; ``latency_costs`` of ``tools.layer_latency``, which is
            told the shape and how the recipe quantizes inputs.
        shape: of the batches that a latency is of; ``Shape(8, 128)`` of the same.
    """

    limit: float | str
    top: int = 5
    evaluations: int | None = None
    rows: int | None = None
    formats: tuple[str, ...] = ()
    measure: Callable[..., CostTable] | None = None
    shape: Shape | None = None

    def __post_init__(self) -> None:
        for name in ("top", "evaluations", "rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = "" if name == "rows" else f" (--{name})"
                raise ValueError(f"{name}{option} {value}: expected 1 or more")
        if self.ratio is None:
            plan = self.plan()
            assert plan.target is not None
            if (self.shape is None) == (plan.target.kind == "latency"):
                raise ValueError(
                    f"shape (--shape) {self.shape}: expected Shape(BATCH, TOKENS) under a latency "
                    "target, and none under another"
                )
            if self.evaluations is not None:
                raise ValueError(
                    "evaluations (--evaluations): belongs to a share of the size, such as "
                    "0.125; leave it out under a target"
                )
        elif not 0 < self.ratio <= 1:
            raise ValueError(
                f"search (--search) {self.limit}: expected a share of the size in FP32, above 0 "
                "and at most 1, such as 0.125"
            )
        else:
            refuse_smaller_than_all(self.ratio, self.options)

    @property
    def ratio(self) -> float | None:
        """The share of the size in FP32; None under a target."""
        try:
            return float(self.limit)
        except ValueError:
            return None

    @property
    def options(self) -> tuple[LayerFormat, ...]:
        """The formats to choose from."""
        if not self.formats and self.ratio is not None:
            return OPTIONS
        return tuple(dict.fromkeys(map(LayerFormat.parse, self.formats or CANDIDATES)))

    def plan(
        self, progress: bool | None = None, inputs: ActivationSpec | None = BY_TOKEN
    ) -> SearchPlan:
        """Of a target.

        Args:
            progress: as of the plan.
            inputs: how those of integer values are quantized, where a latency is measured.

        Raises:
            ValueError: ``limit`` is none.
        """
        try:
            target = Target.parse(str(self.limit))
        except ValueError as error:
            raise ValueError(
                f"search (--search): expected a share of the size in FP32, such as 0.125, or a "
                f"target: {error}"
            ) from None
        given = (
            None if self.measure is None else partial(self.measure, shape=self.shape, inputs=inputs)
        )
        return SearchPlan(target=target, candidates=self.options, measure=given, progress=progress)

    def to_dict(self) -> dict[str, Any]:
        """What was asked for."""
        return {
            "limit": str(self.limit),
            "top": self.top,
            "evaluations": self.evaluations,
            "rows": self.rows,
            "formats": [str(choice) for choice in self.options],
            "shape": None if self.shape is None else f"{self.shape.batch}x{self.shape.seq}",
        }


def search_formats(
    wanted: FormatSearch,
    model: nn.Module,
    part: EvaluationTexts,
    task: Task,
    *,
    pooling: str = "mean",
    calibration: EncodedTexts | None = None,
    costs: CostTable | None = None,
    state: Path | None = None,
    progress: bool | None = None,
) -> Found:
    """Score formats on a trained model without training any.

    Args:
        wanted: what is searched for.
        model: trained for the task; it is as before when this returns.
        part: the development part.
        task: of the model. Scores are the negative loss, of an embedding task Spearman's.
        pooling: of an embedding task.
        calibration: under a target, what layers are solved for; None takes ``part``.
        costs: of ``wanted`` under a target; None takes them now.
        state: a directory of this search alone, which keeps what is measured as it comes.
        progress: show progress bars; None shows them where stderr is a terminal.

    Raises:
        ValueError: nothing is within the limit.
    """
    model.eval()
    rows = part if wanted.rows is None else part.first(wanted.rows)

    def score() -> float:
        # Accuracy of few rows has ties; the loss orders them.
        found = evaluate(model, rows, task, pooling)
        return -found["loss"] if "loss" in found else found["spearman"]

    known = Scores(None if state is None else state / SCORES)
    if wanted.ratio is not None:
        return search(
            encoder_linears(model),
            score,
            wanted.ratio,
            options=wanted.options,
            evaluations=wanted.evaluations,
            scores=known,
            progress=progress,
        )
    plan = wanted.plan(progress)
    costs = mix_costs(model, plan) if costs is None else costs
    batches = _batches(rows.texts if calibration is None else calibration)
    return search_layers(
        model,
        batches,
        _batches(rows.texts),
        score,
        plan,
        costs,
        top=wanted.top,
        scores=known,
        state=PlanState(state),
    )


def recipe_sections(
    configuration: Configuration,
) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """``per`` of a recipe's sections ``pruning`` and ``quantization`` for a configuration.

    Names of matrices become regular expressions that match them alone.
    """
    keys = {part: part if part in COMPONENTS else f"^{re.escape(part)}$" for part in configuration}
    pruning = {
        keys[part]: None if choice.pattern is None else str(choice.pattern)
        for part, choice in configuration.items()
    }
    quantization = {
        keys[part]: choice.values.dtype if choice.values.is_integer else None
        for part, choice in configuration.items()
    }
    return pruning, quantization


def searched_stages(recipe: Recipe) -> list[str]:
    """The stages whose formats a search chooses.

    Raises:
        ValueError: none prunes by a pattern, or none quantizes; or one chooses layers itself.
    """
    pruning = [stage.name for stage in recipe.stages if _by_pattern(stage)]
    quantizing = [stage.name for stage in recipe.stages if stage.quantization is not None]
    if not pruning or not quantizing:
        lacking = "prunes by a pattern" if not pruning else "quantizes"
        raise ValueError(
            f"search (--search): recipe {recipe.name!r} has no stage that {lacking}, and so cannot "
            "train what is found; take one that prunes and quantizes, such as nxmiformer"
        )
    for stage in recipe.stages:
        for key, section in _sections(stage):
            names = ("per", "include", "exclude", "outputs")
            stated = [name for name in names if getattr(section, name, None)]
            if stated:
                raise ValueError(
                    f"search (--search): stage {stage.name!r} states {key}.{stated[0]}, and a "
                    "search chooses for every layer itself, and may leave it dense or float; leave "
                    "one of the two out"
                )
    return [stage.name for stage in recipe.stages if stage.name in (*pruning, *quantizing)]


def with_formats(recipe: Recipe, configuration: Configuration) -> Recipe:
    """The recipe, so that it trains a configuration."""
    pruning, quantization = recipe_sections(configuration)

    def changed(stage: Stage) -> Stage:
        pruned, quantized, rates = stage.pruning, stage.quantization, stage.lr_schedule
        if pruned is not None and _by_pattern(stage):
            if any(pruning.values()):
                # ``per`` says it all, but of the pooler.
                structure = pruned.structure if pruned.pooler else None
                pruned = replace(pruned, structure=structure, per=pruning)
            else:
                # A pruner of nothing has nothing to do, and nothing to rewind at.
                pruned, rates = None, "linear" if rates == "rewinding" else rates
        if quantized is not None:
            quantized = replace(quantized, per=quantization) if any(quantization.values()) else None
        return replace(stage, pruning=pruned, quantization=quantized, lr_schedule=rates)

    return replace(recipe, stages=tuple(map(changed, recipe.stages)))


def rank(task: Task, metrics: dict[str, float]) -> tuple[float, float]:
    """What sorts trained models, the best first: the task's metric, then the loss."""
    name, sign = _BEST[task]
    return -sign * metrics[name], metrics.get("loss", 0.0)


def _batches(texts: EncodedTexts) -> list[dict[str, Tensor]]:
    return [dict(inputs) for inputs, _ in texts.in_order(_BATCH)]


def _by_pattern(stage: Stage) -> bool:
    return stage.pruning is not None and PRUNERS[stage.pruning.method].needs_pattern


def _sections(stage: Stage) -> Iterator[tuple[str, Pruning | Quantization]]:
    if stage.pruning is not None:
        yield "pruning", stage.pruning
    if stage.quantization is not None:
        yield "quantization", stage.quantization
