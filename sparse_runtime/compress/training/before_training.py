"""What is wrong with a recipe on one model and one set of data: found before it trains."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..oneshot.calibrate import least_length
from ..patterns import Pattern
from ..targets import encoder_linears
from .data import Data
from .layout_checks import End, Groups, check_layout_holds
from .models import continue_from, load_model
from .pruners import PRUNERS
from .recipe import MODEL, Recipe, Stage, Task
from .selection import fits, fitting, pruning_targets, quantized_linears
from .stage_checks import asks_labels, check_stage, in_stage
from .task_data import masking_of, training_part, training_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WIDTH = {"hidden_size": ("hidden", "squarehead", "embedding")}
_DEPTH = {"num_hidden_layers": ("hidden", "squarehead", "attention")}
_HEADS = {"num_attention_heads": ("attention",)}
_ALIKE: Mapping[str, tuple[str, ...]] = {**_WIDTH, **_DEPTH, **_HEADS}
"""Size of a model -> the comparisons for which student and teacher need the same."""


@dataclass(frozen=True)
class Checks:
    """Everything that can be known of a run before its first step.

    Attributes:
        source: directory of the checkpoint that the recipe is applied to.
        recipe: its stages.
        data: to train and evaluate on.
        tokenizer: of the model.
        given: stage -> directory of a model that stands for the stage's.
        paper: whether the last stage's layout is to be written.
    """

    source: Path
    recipe: Recipe
    data: Data
    tokenizer: PreTrainedTokenizerBase
    given: Mapping[str, Path]
    paper: bool
    _loaded: dict[tuple[Path, Task], Any] = field(default_factory=dict)

    def run(self) -> None:
        """Go through all stages.

        Raises:
            ValueError: with stage and key.
        """
        for stage in self.recipe.needed(self.given):
            check_stage(stage)
            if stage.name in self.given:
                with in_stage(stage):
                    self._load(self.given[stage.name], stage.task)
            else:
                self._check(stage)

    def _check(self, stage: Stage) -> None:
        with in_stage(stage):
            model = self._load(self.source, stage.task)
            masking_of(stage, self.tokenizer, 0)
            self._check_length(stage)
            self._check_labels(stage)
            frozen = frozen_parameters(model, stage)
            self._check_start(stage)
            self._check_teacher(stage, model)
            self._check_terms(stage, model)
            if stage.augment is not None:
                words = model.get_input_embeddings().weight
                training_texts(stage, self.data, self.tokenizer, 0, words)
            groups = self._check_quantization(stage, model)
        linears, patterns = self._check_pruning(stage, model, frozen)
        if self.paper and stage is self.recipe.stages[-1]:
            with in_stage(stage):
                kind = model.config.model_type
                end = End(stage, kind, encoder_linears(model), set(linears), patterns, groups)
                check_layout_holds(end)

    def _check_quantization(self, stage: Stage, model: nn.Module) -> Groups:
        settings = stage.quantization
        if settings is None:
            return {}
        groups = quantized_linears(model, settings)
        names = [name for group in groups.values() for name in group]
        fitting("quantization.outputs", names, settings.outputs)
        steps = self._steps(stage)
        if settings.activations == "static" and round(settings.start * steps) >= steps:
            raise ValueError(
                f"quantization.start: expected a share that leaves one of the stage's {steps} "
                f"steps to train with quantized inputs, got {settings.start:g}; lower it, or give "
                "the stage more steps"
            )
        return groups

    def _check_pruning(
        self, stage: Stage, model: nn.Module, frozen: Iterable[nn.Parameter]
    ) -> tuple[Mapping[str, nn.Linear], Mapping[str, Pattern]]:
        settings = stage.pruning
        if settings is None:
            return {}, {}
        kind = PRUNERS[settings.method]
        with in_stage(stage):
            linears, patterns = pruning_targets(model, settings, kind.needs_pattern)
            _check_gradients(settings.method, linears, frozen)
        with in_stage(stage, "pruning."):
            kind.check_model(settings, patterns, model, linears, self._steps(stage))
        return linears, patterns

    def _steps(self, stage: Stage) -> int:
        copies = 0 if stage.augment is None else stage.augment.copies
        return stage.steps_in(len(training_part(stage, self.data)) * (1 + copies))[1]

    def _check_length(self, stage: Stage) -> None:
        pairs = training_part(stage, self.data).seconds is not None
        least = least_length(self.tokenizer, pairs=pairs)
        if stage.max_length is not None and stage.max_length < least:
            raise ValueError(
                f"max_length: expected {least} or more, for the tokenizer adds {least - 1} tokens "
                f"of its own, got {stage.max_length}"
            )

    def _check_labels(self, stage: Stage) -> None:
        labels = training_part(stage, self.data).labels
        if stage.task != "masked_lm" and asks_labels(stage) and labels is None:
            raise ValueError(
                f"task: {stage.task} needs labels, and the data has none; give labelled data, or "
                "set distillation.task to 0"
            )
        if stage.task == "regression" and self.data.label_names is not None:
            raise ValueError(
                "task: regression needs scores, and the data has classes; name the column score, "
                "or take the task classification"
            )
        section = None if stage.distillation is None else stage.distillation.contrastive
        if section is None or not section.label_weight:
            return
        if labels is None or not all(isinstance(label, int) for label in labels):
            raise ValueError(
                f"distillation.contrastive.label_weight: expected 0, got {section.label_weight:g}: "
                "there are no classes to tell positives by"
            )

    def _check_start(self, stage: Stage) -> None:
        start = self.recipe.start_of(stage)
        if start in self.given:
            # Not those that are kept: weights are copied.
            task = next(one.task for one in self.recipe.stages if one.name == start)
            earlier = load_model(self.given[start], task, self.data)
            try:
                continue_from(load_model(self.source, stage.task, self.data), earlier)
            except ValueError as error:
                raise ValueError(f"start: {start!r}: {error}") from None

    def _check_teacher(self, stage: Stage, model: Any) -> None:
        if stage.teacher is None:
            return
        if stage.teacher == MODEL or stage.teacher in self.given:
            teacher = self._load(self.given.get(stage.teacher, self.source), stage.task)
            refuse_headless(teacher, stage)
            _check_sizes(stage, model.config, teacher.config)
            return
        task = next(one.task for one in self.recipe.stages if one.name == stage.teacher)
        if stage.task not in (task, "embedding"):
            raise ValueError(
                f"teacher: {stage.teacher!r} is trained for {task} and has no head for "
                f"{stage.task}; expected a stage of that task"
            )

    def _check_terms(self, stage: Stage, model: nn.Module) -> None:
        section = None if stage.distillation is None else stage.distillation.contrastive
        names = [name.rpartition(".")[2] for name, _ in model.named_modules()]
        if section is not None and section.pooling == "pooler" and "pooler" not in names:
            raise ValueError(
                "distillation.contrastive.pooling: this model has no pooler; expected mean or cls"
            )

    def _load(self, directory: Path, task: Task) -> Any:
        key = (directory, task)
        if key not in self._loaded:
            self._loaded[key] = load_model(directory, task, self.data)
        return self._loaded[key]


def frozen_parameters(model: nn.Module, stage: Stage) -> list[nn.Parameter]:
    """The parameters that a stage does not train.

    Raises:
        ValueError: an expression fits none, or nothing is left to train.
    """
    named = dict(model.named_parameters())
    frozen: dict[str, nn.Parameter] = {}
    for index, pattern in enumerate(stage.freeze):
        hits = {name: p for name, p in named.items() if re.search(pattern, name)}
        if not hits:
            raise ValueError(
                f"freeze[{index}]: {pattern!r} fits no parameter of {len(named)}; expected a "
                f"regular expression that is found in a name such as {next(iter(named))}"
            )
        frozen |= hits
    scored = stage.pruning is not None and PRUNERS[stage.pruning.method].learns_scores
    if len(frozen) == len(named) and not scored:
        raise ValueError(f"freeze: {list(stage.freeze)} leaves no parameter to train")
    return list(frozen.values())


def _check_gradients(
    method: str, linears: Mapping[str, nn.Linear], frozen: Iterable[nn.Parameter]
) -> None:
    """A frozen weight has no gradient to choose by."""
    read = PRUNERS[method].reads_gradients
    still = set(map(id, frozen))
    for name, linear in linears.items():
        if id(linear.weight) in still and any(fits(key, name) for key in read):
            raise ValueError(
                f"freeze: fits {name}.weight, whose gradients pruning.method {method} chooses by; "
                "leave it out of freeze, or out of the pruning (pruning.exclude)"
            )


def refuse_headless(teacher: Any, stage: Stage) -> None:
    """Raise ValueError for a teacher whose head would be random."""
    if teacher.new_parameters:
        raise ValueError(
            f"teacher: {stage.teacher!r} has no head for task {stage.task} and the data's classes "
            f"({teacher.new_parameters[0]} would be random); expected a model of that task whose "
            "config.json names these classes in id2label"
        )


def _check_sizes(stage: Stage, student: Any, teacher: Any) -> None:
    for size, keys in _ALIKE.items():
        ours, theirs = getattr(student, size, None), getattr(teacher, size, None)
        weighed = [key for key in keys if stage.distillation and getattr(stage.distillation, key)]
        if ours != theirs and weighed:
            raise ValueError(
                f"distillation.{weighed[0]}: expected a teacher of the student's {size} {ours}, "
                f"got {theirs}; set distillation.{weighed[0]} to 0"
            )
