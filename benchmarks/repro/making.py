"""One run: dense model or recipe or one-shot -> checkpoint -> packed model -> record."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import sparse_runtime as sr
from sparse_runtime.benchmarks.models import quiet_transformers
from sparse_runtime.benchmarks.records import environment
from sparse_runtime.benchmarks.repro.experiments import DENSE, TEACHER, Experiment
from sparse_runtime.benchmarks.repro.measure import Packed, packed_metric
from sparse_runtime.benchmarks.repro.records import Run
from sparse_runtime.benchmarks.repro.tasks import METRICS, calibration_texts, load_task
from sparse_runtime.compress.training.data import Data
from sparse_runtime.compress.training.evaluation import evaluate
from sparse_runtime.compress.training.models import load_model, load_tokenizer, sentence_pooling
from sparse_runtime.compress.training.reading import load_recipe
from sparse_runtime.compress.training.recipe import MODEL, Recipe, Stage
from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.task_data import evaluation_texts
from sparse_runtime.compress.training.workspace import is_unfinished

MADE = "made.json"
LONGER = 4
"""How many times as long students train at scale "long"."""


@dataclass(frozen=True)
class Made:
    """A checkpoint, and what making it took.

    Attributes:
        metric: of the checkpoint as its trainer measured it; None where nobody did.
        seconds: of wall time.
        steps: optimizer steps.
        weights: of the encoder's matrices, zeros included.
        found: changes of the recipe that a search gave.
        told: changes of the recipe, or arguments of the one-shot call, that it was made with; None
            where the note does not say.
    """

    metric: float | None
    seconds: float
    steps: int
    weights: int
    found: tuple[str, ...] = ()
    told: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Bench:
    """Where and how runs are made.

    Attributes:
        model: directory of the pre-trained encoder.
        folder: checkpoints and packed models are kept here, a folder a run.
        scale: "full", "long", "quick" or "smoke".
        device: to train on, such as "cuda"; one-shot methods and packed models stay on the CPU.
    """

    model: Path
    folder: Path
    scale: str
    device: str = "cpu"

    def place(self, experiment: str, task: str, seed: int) -> Path:
        """Folder of one run; the dense model's is shared by all others of its task and seed."""
        word = "".join(c if c.isalnum() else "-" for c in experiment.lower()).strip("-")
        return self.folder / self.scale / task / f"seed{seed}" / word


class Maker:
    """Makes, packs and measures one experiment on one task with one seed."""

    def __init__(self, bench: Bench, experiment: Experiment, task: str, seed: int) -> None:
        self.bench = bench
        self.experiment = experiment
        self.task = task
        self.seed = seed
        self.place = bench.place(experiment.name, task, seed)

    @cached_property
    def data(self) -> Data:
        """Of the task."""
        return load_task(self.task)

    @property
    def dense(self) -> Path:
        """Checkpoint of the dense model; of an embedding task, the encoder that was given."""
        if METRICS[self.task] == "spearman":
            return self.bench.model
        return self.bench.place(DENSE, self.task, self.seed) / "checkpoint"

    def run(self, dense_metric: float | None) -> Run:
        """Make what is not there yet, and measure it.

        Args:
            dense_metric: of the dense model; None where this run is it.
        """
        with quiet_transformers():
            checkpoint, made = self._checkpoint()
            packed = self.place / "packed"
            report = sr.convert(checkpoint, packed, overwrite=True, **self.experiment.convert)
        sizes = Packed.of(report, made.weights)
        assert self.data.test is not None
        metric = packed_metric(packed, self.task, self.data.test)
        dense = made.metric if dense_metric is None else dense_metric
        assert dense is not None
        return Run(
            experiment=self.experiment.name,
            task=self.task,
            seed=self.seed,
            scale=self.bench.scale,
            metric=METRICS[self.task],
            packed=metric,
            trained=made.metric,
            dense=dense,
            **asdict(sizes),
            seconds=round(made.seconds, 1),
            steps=made.steps,
            settings=[*self.settings(), *made.found],
            environment=asdict(environment()),
        )

    def changes(self) -> tuple[str, ...]:
        """Of the recipe, at this scale."""
        quick = self.experiment.quick if self.bench.scale == "quick" else ()
        return (*self.experiment.changes, *self.experiment.per_task.get(self.task, ()), *quick)

    def settings(self) -> list[str]:
        """What a reader needs to know to repeat the run."""
        return [*self._told(), *_words(self.experiment.convert)]

    def _told(self) -> tuple[str, ...]:
        return (*self.changes(), *_words(self.experiment.one_shot or {}))

    def _checkpoint(self) -> tuple[Path, Made]:
        checkpoint, note = self.place / "checkpoint", self.place / MADE
        if note.is_file():
            made = Made(**json.loads(note.read_text(encoding="utf-8")))
            if made.told is not None and tuple(made.told) != self._told():
                raise ValueError(
                    f"{self.place}: was made with {', '.join(made.told)}, and is asked for with "
                    f"{', '.join(self._told())}; remove it, or give another --dir"
                )
            return checkpoint, made
        self.place.mkdir(parents=True, exist_ok=True)
        if self.experiment.recipe is not None:
            made = self._train(checkpoint)
        elif self.experiment.one_shot is not None:
            made = self._one_shot(checkpoint)
        else:
            return self.dense, self._as_it_is()
        note.write_text(json.dumps(asdict(replace(made, told=self._told()))), encoding="utf-8")
        return checkpoint, made

    def _train(self, out: Path) -> Made:
        # The note is written last: a checkpoint without one is of a run that was cut off.
        shutil.rmtree(out, ignore_errors=True)
        given = {
            stage: self.bench.place(name, self.task, self.seed) / "checkpoint"
            for stage, name in self.experiment.given.items()
        }
        began = time.perf_counter()
        found = self._search()
        searching = time.perf_counter() - began
        report = train(
            self.bench.model,
            self.recipe(found),
            self.data,
            out,
            seed=self.seed,
            given=given,
            resume=is_unfinished(out),
            save_every=500,
            device=self.bench.device,
        )
        seconds = searching + sum(stage.seconds for stage in report.stages)
        steps = sum(stage.steps for stage in report.stages)
        return Made(report.metrics[METRICS[self.task]], seconds, steps, _weights(out), found)

    def _search(self) -> tuple[str, ...]:
        if self.experiment.search is None:
            return ()
        from sparse_runtime.benchmarks.repro.searching import searched

        return searched(self.dense, self.data, self.experiment.search, "compress")

    def recipe(self, more: Sequence[str] = ()) -> Recipe:
        """With its changes and these, as far as it is run."""
        name = self.experiment.recipe
        assert name is not None
        recipe = load_recipe(name, (*self.changes(), *more))
        if self.bench.scale == "long":
            recipe = replace(recipe, stages=tuple(map(_longer, recipe.stages)))
        if self.experiment.until is None:
            return recipe
        names = [stage.name for stage in recipe.stages]
        last = names.index(self.experiment.until)
        return replace(recipe, stages=recipe.stages[: last + 1])

    def _one_shot(self, out: Path) -> Made:
        from sparse_runtime.compress.oneshot.prune import prune

        arguments = self.experiment.one_shot
        assert arguments is not None
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        prune(self.dense, out, calibration=calibration_texts(self.data), **arguments)
        return Made(None, time.perf_counter() - began, 0, _weights(out))

    def _as_it_is(self) -> Made:
        metric = None
        if self.experiment.name == DENSE:
            metric = dense_metric(self.dense, self.task, self.data)
        return Made(metric, 0.0, 0, _weights(self.dense))


def dense_metric(checkpoint: Path, task: str, data: Data) -> float:
    """Of a sentence encoder that nobody trains, run by transformers in float32."""
    model = load_model(checkpoint, "embedding", data)
    assert data.test is not None and data.test.seconds is not None
    texts = load_tokenizer(checkpoint)
    stage = Stage(name="dense", task="embedding", steps=1, teacher=MODEL)
    part = evaluation_texts(stage, data.test, texts)
    assert part is not None
    found = evaluate(model, part, "embedding", sentence_pooling(checkpoint, "auto"))
    return found[METRICS[task]]


def _words(arguments: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in arguments.items())


def _longer(stage: Stage) -> Stage:
    if stage.name == TEACHER:
        return stage
    longer = {name: getattr(stage, name) for name in ("epochs", "steps")}
    return replace(stage, **{name: LONGER * n for name, n in longer.items() if n is not None})


def _weights(checkpoint: Path) -> int:
    """Weights of the encoder's matrices."""
    matrices = sr.inspect(checkpoint).matrices
    return sum(m.shape[0] * m.shape[1] for m in matrices if m.kind == "encoder_linear")
