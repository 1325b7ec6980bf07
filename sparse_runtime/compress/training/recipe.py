"""Recipes: what a YAML file says, as frozen dataclasses.

A recipe is a list of stages; each trains one model, from the given model or from what an earlier
stage gave, and the last stage's is the result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..paper_layouts import Layout
from .augmentation import Augmentation
from .schema import WrongValue, regular_expression, require
from .sections import Distillation, Pruning, Quantization

Task = Literal["classification", "regression", "masked_lm", "embedding"]
Pooling = Literal["auto", "mean", "cls"]
LearningRateSchedule = Literal["linear", "constant", "rewinding", "sawtooth"]

MODEL = "model"
"""Word for the model that the recipe is applied to."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        name: its name; its own folder and other stages use it.
        task: what the model is trained for. "embedding" has no labels: the teacher is all.
        epochs: passes over the data, may be a fraction; or give ``steps``.
        steps: optimizer steps.
        learning_rate: the highest.
        lr_schedule: "linear" (to 0), "constant", "rewinding" (linear, its clock set back at each
            pruning event) or "sawtooth" (linear from ``learning_rate`` to ``final_learning_rate``,
            ``lr_cycles`` times).
        final_learning_rate: sawtooth only.
        lr_cycles: sawtooth only.
        warmup: fraction of the steps over which the learning rate rises.
        weight_decay: of matrices, not of biases and norms.
        batch_size: examples of an optimizer step.
        accumulation: parts that a batch is cut into, to save memory. Each counts by its rows, of a
            masked LM too; what compares the texts of a batch (similarity, contrastive) sees those
            of a part.
        clip: largest norm of the gradient; 0 leaves it as it is.
        max_length: tokens a text is cut to, at most what tokenizer and model take; null is that.
        dropout: of hidden states and attention; null leaves the model's own.
        length_grouping: put texts of like length into a batch.
        bf16: autocast to bfloat16 while training; evaluation is always float32.
        mask_probability: masked LM only, share of the tokens that are masked.
        freeze: regular expressions; parameters in whose name one is found are not trained.
        start: "model", or the stage whose model this one starts from; null is the stage before,
            or "model" for the first.
        teacher: "model" or a stage; null for none.
        pruning: section; null trains dense, or whatever zeros there are get filled.
        distillation: section; null is the loss on the labels alone.
        augment: section; null trains on the texts as they are.
        quantization: section; null trains in float.
        layout: of ``export_paper_layout``, the files in which the paper's own code would have left
            this stage's model; null where a paper has none.
    """

    name: str
    task: Task
    epochs: float | None = None
    steps: int | None = None
    learning_rate: float = 5e-5
    lr_schedule: LearningRateSchedule = "linear"
    final_learning_rate: float = 0.0
    lr_cycles: int = 1
    warmup: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 32
    accumulation: int = 1
    clip: float = 1.0
    max_length: int | None = 128
    dropout: float | None = None
    length_grouping: bool = True
    bf16: bool = False
    mask_probability: float = 0.15
    freeze: tuple[str, ...] = ()
    start: str | None = None
    teacher: str | None = None
    pruning: Pruning | None = None
    distillation: Distillation | None = None
    augment: Augmentation | None = None
    quantization: Quantization | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == MODEL:
            raise WrongValue(
                "name",
                f"{self.name!r}: expected a word that can name a folder: up to 64 letters, digits, "
                f"_ and -, and not {MODEL!r}",
            )
        self._check_length()
        self._check_ranges()
        self._check_schedule()
        for index, pattern in enumerate(self.freeze):
            regular_expression(f"freeze[{index}]", pattern)
        if self.distillation is not None and self.teacher is None:
            raise WrongValue("distillation", "needs a teacher; expected teacher: model or a stage")
        if self.task == "embedding" and self.teacher is None:
            raise WrongValue("teacher", "task embedding has no labels; give a teacher")
        self._check_augmentation()

    def steps_in(self, rows: int) -> tuple[int, int]:
        """Optimizer steps of an epoch of so many rows, and of the whole stage."""
        epoch = -(-rows // self.batch_size)
        return epoch, self.steps or max(1, round((self.epochs or 0) * epoch))

    def _check_length(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise WrongValue("epochs", "give either epochs or steps")
        key = "epochs" if self.steps is None else "steps"
        length = self.epochs if self.steps is None else self.steps
        assert length is not None  # one of the two
        require(**{key: (length, 0 < length < math.inf, "a number above 0")})

    def _check_augmentation(self) -> None:
        if self.augment is None:
            return
        if self.task == "masked_lm" or self.distillation is None:
            raise WrongValue(
                "augment",
                "only a teacher can answer copies of texts; expected a distillation section, and "
                "another task than masked_lm",
            )
        labels = self.task != "embedding" and self.distillation.task != 0
        if labels or self.distillation.contrastive is not None:
            raise WrongValue(
                "augment",
                "copies of texts have no labels of their own; expected distillation.task 0 and no "
                "distillation.contrastive",
            )

    def _check_schedule(self) -> None:
        if self.lr_schedule == "rewinding" and self.pruning is None:
            raise WrongValue(
                "lr_schedule", "rewinding needs a pruning section, for it rewinds at its events"
            )
        if self.lr_schedule == "sawtooth" and self.warmup:
            raise WrongValue(
                "warmup",
                f"expected 0, for lr_schedule sawtooth has none, got {self.warmup}; leave it out, "
                "or say lr_schedule: linear",
            )
        if self.lr_schedule != "sawtooth":
            of_sawtooth = f"for it belongs to lr_schedule sawtooth, not {self.lr_schedule}"
            low, cycles = self.final_learning_rate, self.lr_cycles
            require(
                final_learning_rate=(low, low == 0, f"0, {of_sawtooth}"),
                lr_cycles=(cycles, cycles == 1, f"1, {of_sawtooth}"),
            )
        elif self.final_learning_rate > self.learning_rate:
            raise WrongValue(
                "final_learning_rate",
                f"expected at most learning_rate {self.learning_rate:g}, from which a tooth falls, "
                f"got {self.final_learning_rate:g}",
            )

    def _check_ranges(self) -> None:
        # Written so that NaN is refused too.
        fitting = {
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "final_learning_rate": (0 <= self.final_learning_rate < math.inf, "0 or more"),
            "lr_cycles": (self.lr_cycles >= 1, "1 or more"),
            "warmup": (0 <= self.warmup < 1, "a fraction from 0 to below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "accumulation": (self.accumulation >= 1, "1 or more"),
            "clip": (0 <= self.clip < math.inf, "above 0, or 0 for no clipping"),
            "max_length": (self.max_length is None or self.max_length >= 1, "1 or more, or null"),
            "dropout": (self.dropout is None or 0 <= self.dropout < 1, "0 to below 1, or null"),
            "mask_probability": (0 < self.mask_probability <= 1, "above 0 to 1"),
        }
        for key, (fits, expected) in fitting.items():
            require(**{key: (getattr(self, key), fits, expected)})
        if self.batch_size % self.accumulation:
            raise WrongValue(
                "batch_size",
                f"expected a multiple of accumulation {self.accumulation}, got {self.batch_size}",
            )


@dataclass(frozen=True)
class Recipe:
    """A list of stages.

    Attributes:
        name: of the recipe.
        stages: in the order in which they run.
        paper: what it follows.
        about: one line.
        pooling: how an encoder without a head makes one vector of a text: "mean", "cls", or "auto"
            as the model's own sentence-transformers settings say.
    """

    name: str
    stages: tuple[Stage, ...]
    paper: str = ""
    about: str = ""
    pooling: Pooling = "auto"

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a recipe has at least one stage")
        earlier: list[str] = [MODEL]
        for stage in self.stages:
            if stage.name in earlier:
                raise ValueError(f"two stages are called {stage.name!r}")
            for role in (stage.start, stage.teacher):
                if role is not None and role not in earlier:
                    raise ValueError(
                        f"stage {stage.name!r}: {role!r} is no earlier stage; expected one of "
                        f"{', '.join(earlier)}"
                    )
            earlier.append(stage.name)

    def start_of(self, stage: Stage) -> str:
        """The stage that ``stage`` starts from, or "model"."""
        if stage.start is not None:
            return stage.start
        index = self.stages.index(stage)
        return self.stages[index - 1].name if index else MODEL

    def needed(self, given: Collection[str]) -> tuple[Stage, ...]:
        """Stages that are left where models are given: not those that served the given ones alone.

        Args:
            given: names of stages that models stand for; these are among what is returned.
        """
        unneeded = self._rest_on(given, ()) - self._rest_on([self.stages[-1].name], given)
        return tuple(s for s in self.stages if s.name in given or s.name not in unneeded)

    def _rest_on(self, names: Collection[str], given: Collection[str]) -> set[str]:
        """These stages and all that they start from or learn from, as far as what is given."""
        found = set(names)
        for stage in reversed(self.stages):
            if stage.name in found and stage.name not in given:
                found.add(self.start_of(stage))
                if stage.teacher is not None:
                    found.add(stage.teacher)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a YAML file would hold them; options stand beside their neighbours."""
        data = asdict(self)
        for stage in data["stages"]:
            if stage["pruning"] is not None:
                stage["pruning"].update(stage["pruning"].pop("options") or {})
        return data
