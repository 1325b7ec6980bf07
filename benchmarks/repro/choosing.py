"""What to train with, chosen on the rows that are set aside: the test part stays out of it.

Accuracy on some thousand rows tells two ways apart only where they differ by points. How far a
student's answers are from its teacher's tells more of the same rows, and, on the rows it was
trained on beside those it was not, whether it has learnt them by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparse_runtime.benchmarks.records import environment
from sparse_runtime.benchmarks.repro.experiments import DENSE, Experiment
from sparse_runtime.benchmarks.repro.making import Bench, Maker
from sparse_runtime.benchmarks.repro.records import append_line, lines
from sparse_runtime.compress.training.data import Data, Part
from sparse_runtime.compress.training.distillation import soft_labels
from sparse_runtime.compress.training.encoding import EncodedTexts
from sparse_runtime.compress.training.evaluation import predict
from sparse_runtime.compress.training.models import load_model, load_tokenizer

KIND = "repro-choice"
TEMPERATURE = 2.0
_EVERY = 8
"""One of so many rows that were trained on is asked again."""


@dataclass(frozen=True)
class Choice:
    """One way to train, measured on the rows that are set aside.

    Attributes:
        label: what differs, in words.
        experiment: of the table, that it is a variant of.
        task: data it was trained and measured on.
        seed: of the training.
        changes: of the recipe, the experiment's own among them.
        steps: optimizer steps.
        divergence_trained: from the teacher, on rows that were trained on: the recipes' loss of
            soft labels at temperature 2.
        divergence_aside: the same on those set aside.
        agreement: share of those set aside to which student and teacher give one class.
        packed: accuracy on them, of the packed model.
        teacher: accuracy of the teacher on them.
        environment: as every record of benchmarks has it.
    """

    label: str
    experiment: str
    task: str
    seed: int
    changes: list[str]
    steps: int
    divergence_trained: float
    divergence_aside: float
    agreement: float
    packed: float
    teacher: float
    environment: dict[str, Any]


def choose(
    bench: Bench, experiment: Experiment, task: str, seed: int, label: str, changes: Sequence[str]
) -> Choice:
    """Train one variant of an experiment, and compare it with its teacher.

    Args:
        bench: where and how; the dense model of task and seed must be there.
        experiment: of the table, one that trains.
        task: with labels.
        seed: of the training.
        label: names the folder too.
        changes: of the recipe, after the experiment's own, those for the task included.

    Raises:
        ValueError: the experiment does not train, or its teacher is not there.
    """
    if experiment.recipe is None:
        raise ValueError(f"experiment {experiment.name!r}: expected one that trains by a recipe")
    dense = bench.place(DENSE, task, seed) / "checkpoint"
    if not dense.is_dir():
        raise ValueError(f"{dense}: no such checkpoint; run --only '{DENSE}' --task {task} first")
    more = (*experiment.per_task.get(task, ()), *changes)
    variant = replace(experiment, changes=(*experiment.changes, *more), per_task={})
    maker = Maker(bench, variant, task, seed)
    maker.place = bench.place(f"choice {experiment.name} {label}", task, seed)
    maker.data = data = replace(maker.data, test=maker.data.dev)
    run = maker.run(dense_metric=1.0)
    compared = _compare(maker.place / "checkpoint", dense, data)
    return Choice(
        label=label,
        experiment=experiment.name,
        task=task,
        seed=seed,
        changes=list(maker.changes()),
        steps=run.steps,
        packed=run.packed,
        environment=asdict(environment()),
        **compared,
    )


def _compare(student: Path, teacher: Path, data: Data) -> dict[str, float]:
    """Divergences, agreement and the teacher's accuracy."""
    assert data.dev is not None
    models = [load_model(path, "classification", data).eval() for path in (student, teacher)]
    tokenizer = load_tokenizer(teacher)

    def asked(part: Part) -> tuple[Any, Any, EncodedTexts]:
        texts = EncodedTexts(part, tokenizer, None)
        ours, theirs = (predict(model, texts) for model in models)
        return ours, theirs, texts

    ours, theirs, _ = asked(data.train.rows(range(0, len(data.train), _EVERY)))
    trained = float(soft_labels(ours, theirs, TEMPERATURE))
    ours, theirs, texts = asked(data.dev)
    return {
        "divergence_trained": trained,
        "divergence_aside": float(soft_labels(ours, theirs, TEMPERATURE)),
        "agreement": float((ours.argmax(1) == theirs.argmax(1)).double().mean()),
        "teacher": float((theirs.argmax(1) == texts.labels).double().mean()),
    }


def append_choice(choice: Choice, path: Path) -> None:
    """Add a line."""
    append_line({"kind": KIND, **asdict(choice)}, path)


def choices_table(path: Path, task: str) -> str:
    """All choices of a task as Markdown; of one label twice, the last."""
    found: dict[tuple[str, str, int], Choice] = {}
    for line in lines(path):
        if line.pop("kind", None) == KIND and line["task"] == task:
            choice = Choice(**line)
            found[choice.experiment, choice.label, choice.seed] = choice
    rows = [
        "| experiment | with | seed | steps | divergence, trained on | set aside | agree "
        "| accuracy | teacher's |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found.values():
        numbers = f"{one.divergence_trained:.3f} | {one.divergence_aside:.3f}"
        rows.append(
            f"| {one.experiment} | {one.label} | {one.seed} | {one.steps} | {numbers} "
            f"| {one.agreement:.1%} | {one.packed:.4f} | {one.teacher:.4f} |"
        )
    return "\n".join(rows)
