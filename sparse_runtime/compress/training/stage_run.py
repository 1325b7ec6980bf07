"""One stage after another: models loaded, trained, evaluated and written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..fake_quant import read_quantization
from ..masks import baked_weight, share_of_zeros
from ..patterns import sparsity
from ..targets import encoder_linears
from ..writing import write_checkpoint
from .before_training import Checks, frozen_parameters, refuse_headless
from .classes import in_checkpoint_order
from .data import Data, Part
from .encoding import EncodedTexts
from .evaluation import evaluate
from .models import continue_from, load_model, load_tokenizer, sentence_pooling
from .paper_files import write_paper_files
from .pruners import PRUNERS, Pruner
from .recipe import MODEL, Recipe, Stage, Task
from .report import StageReport
from .selection import pruning_targets
from .sources import check_given, check_source
from .stage_checks import in_stage
from .stage_training import Models, StageTraining
from .task_data import evaluation_texts, training_texts
from .terms import distillation_terms
from .workspace import Workspace


@dataclass(frozen=True)
class Pace:
    """How often things are kept and shown.

    Attributes:
        save_every: optimizer steps between checkpoints; None keeps none.
        log_every: optimizer steps between entries of the log.
        progress: show a progress bar; None shows it where stderr is a terminal.
    """

    save_every: int | None = None
    log_every: int = 50
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name in ("save_every", "log_every"):
            steps = getattr(self, name)
            if steps is not None and steps < 1:
                raise ValueError(f"{name} {steps}: expected 1 step or more")


class Diverged(ValueError):
    """A training left parameters that are not finite."""


def refuse_diverged(model: nn.Module, stage: Stage) -> None:
    """Raise Diverged for a parameter with NaN or infinities: no model to write."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise Diverged(
                f"stage {stage.name!r}: the training has diverged ({name} has values that are not "
                f"finite); lower learning_rate {stage.learning_rate:g} (--set {stage.name}."
                f"learning_rate={stage.learning_rate / 10:g}); resume (--resume) keeps the stages "
                "before it"
            )


class StageRunner:
    """Runs the stages of one recipe on one model and one set of data.

    Args:
        source: directory of the checkpoint that the recipe is applied to.
        recipe: its stages.
        data: to train and evaluate on.
        seed: of the run.
        device: where to train.
        given: stage -> directory of a model that stands for the stage's.
        paper: write the last stage's model in its paper's own files too.

    Attributes:
        stages: those that are trained or given, in their order.

    Raises:
        ValueError: a given stage is not in the recipe, or is its last; or a model is quantized,
            packed, or stored in a way that transformers would misread.
    """

    def __init__(
        self,
        source: Path,
        recipe: Recipe,
        data: Data,
        seed: int,
        device: torch.device,
        given: Mapping[str, Path],
        paper: bool = False,
    ) -> None:
        self.source = source
        self.recipe = recipe
        self.data = in_checkpoint_order(data, source)
        self.seed = seed
        self.device = device
        self.given = dict(given)
        self.paper = paper
        earlier = [stage.name for stage in recipe.stages[:-1]]
        for name in self.given:
            if name not in earlier:
                raise ValueError(
                    f"stage {name!r}: a model can be given for {', '.join(earlier) or 'none'} "
                    f"of recipe {recipe.name!r}; the last stage makes the result"
                )
        check_source(source)
        for directory in self.given.values():
            check_given(directory)
        self.tokenizer = load_tokenizer(source)
        self.stages = recipe.needed(self.given)
        self._stages = {stage.name: stage for stage in self.stages}
        embeds = any(stage.task == "embedding" for stage in self.stages)
        self.pooling = sentence_pooling(source, recipe.pooling) if embeds else "mean"

    def check(self) -> None:
        """Refuse, before anything is trained or written, what a stage would refuse in its turn.

        Raises:
            ValueError: with stage and key.
        """
        checks = Checks(self.source, self.recipe, self.data, self.tokenizer, self.given, self.paper)
        checks.run()

    def stage(self, stage: Stage, workspace: Workspace, pace: Pace) -> StageReport:
        """Train one stage, or take it as it is where it is given or done already."""
        done = workspace.result(stage.name)
        if done is not None:
            return StageReport.from_dict(done)
        if stage.name in self.given:
            report = self._report(stage, self._model(stage.name, stage), 0, 0.0)
        else:
            report = self._train(stage, workspace, pace)
        workspace.finish(stage.name, asdict(report))
        return report

    def prepare(self, stage: Stage, workspace: Workspace) -> tuple[StageTraining, Pruner | None]:
        """Student, teacher, data, terms and pruner of a stage, ready to train."""
        from transformers import set_seed

        set_seed(self.seed)
        student = load_model(self.source, stage.task, self.data, stage.dropout)
        start = self.recipe.start_of(stage)
        if start != MODEL:
            continue_from(student, self._model(start, self._stages[start], workspace))
        for parameter in frozen_parameters(student, stage):
            parameter.requires_grad_(False)
        student.to(self.device)
        models = Models(student, self._teacher(stage, workspace), self.pooling)
        terms = distillation_terms(stage.distillation, stage.task) if stage.distillation else []
        training = StageTraining(
            stage,
            models,
            self._texts(stage, models.teacher),
            terms,
            self.seed,
        )
        training.attach()
        pruner = None
        if stage.pruning is not None:
            kind = PRUNERS[stage.pruning.method]
            linears, patterns = pruning_targets(student, stage.pruning, kind.needs_pattern)
            training.linears = linears
            pruner = kind(stage.pruning, patterns)
            pruner.attach(student, linears, training)
        training.quantize()
        return training, pruner

    def _train(self, stage: Stage, workspace: Workspace, pace: Pace) -> StageReport:
        from .trainer import CompressionTrainer, training_arguments

        with in_stage(stage):
            training, pruner = self.prepare(stage, workspace)
        arguments = training_arguments(
            training,
            workspace.checkpoints(stage.name),
            save_every=pace.save_every,
            log_every=pace.log_every,
        )
        trainer = CompressionTrainer(training, pruner, arguments, progress=pace.progress)
        last = workspace.last_checkpoint(stage.name)
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        seconds = time.perf_counter() - began
        model = training.model.eval()
        refuse_diverged(model, stage)
        if pruner is not None:
            pruner.finish()
        history = tuple(dict(entry) for entry in trainer.state.log_history)
        self._write(model, stage, workspace)  # first: what evaluation meets must not cost the model
        return self._report(stage, model, training.total_steps, seconds, history)

    def _texts(self, stage: Stage, teacher: Any) -> EncodedTexts:
        embeddings = None if stage.augment is None else teacher.get_input_embeddings().weight.cpu()
        return training_texts(stage, self.data, self.tokenizer, self.seed, embeddings)

    def _write(self, model: nn.Module, stage: Stage, workspace: Workspace) -> None:
        record = {
            "recipe": self.recipe.name,
            "stage": stage.name,
            "arguments": self.recipe.to_dict(),
            "seed": self.seed,
        }
        # With its pipeline beside it, a model with a head would run as the bare encoder.
        extra = self.source if stage.task == "embedding" else None
        workspace.discard_models(stage.name)
        folder = workspace.model(stage.name)
        write_checkpoint(model, self.tokenizer, folder, record=record, extra_files=extra)
        if self.paper and stage is self.recipe.stages[-1]:
            write_paper_files(model, self.tokenizer, stage, workspace, extra)

    def _report(
        self,
        stage: Stage,
        model: nn.Module,
        steps: int,
        seconds: float,
        history: tuple[dict[str, float], ...] = (),
    ) -> StageReport:
        last = stage is self.recipe.stages[-1]
        # Masked tokens say little of the result, and a vocabulary is slow to predict.
        skipped = stage.task == "masked_lm" and not last
        return StageReport(
            name=stage.name,
            task=stage.task,
            steps=steps,
            seconds=seconds,
            metrics={} if skipped else self._metrics(stage, model, self.data.test),
            development=self._metrics(stage, model, self.data.dev) if last else {},
            layers={
                name: sparsity(baked_weight(linear))
                for name, linear in encoder_linears(model).items()
            },
            sparsity=share_of_zeros(encoder_linears(model)),
            quantized=tuple(read_quantization(model)),
            new_parameters=tuple(getattr(model, "new_parameters", ())),
            history=history,
        )

    def _metrics(self, stage: Stage, model: nn.Module, rows: Part | None) -> dict[str, float]:
        part = evaluation_texts(stage, rows, self.tokenizer)
        return {} if part is None else evaluate(model, part, stage.task, self.pooling)

    def _teacher(self, stage: Stage, workspace: Workspace) -> nn.Module | None:
        if stage.teacher is None:
            return None
        if stage.teacher == MODEL:
            teacher = load_model(self.source, stage.task, self.data)
        else:
            teacher = self._model(stage.teacher, self._stages[stage.teacher], workspace, stage.task)
        refuse_headless(teacher, stage)
        return teacher.to(self.device).eval().requires_grad_(False)

    def _model(
        self, name: str, stage: Stage, workspace: Workspace | None = None, task: Task | None = None
    ) -> Any:
        """The model of an earlier stage, with the head of its own task or of another one."""
        given = self.given.get(name)
        if given is None:
            assert workspace is not None
            given = workspace.model(name)
        return load_model(given, task or stage.task, self.data).to(self.device)
