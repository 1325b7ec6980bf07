"""Recipes: what a YAML file says, as frozen dataclasses.

A recipe is a list of stages; each trains one model, from the given model or from what an earlier
stage gave, and the last stage's is the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..paper_layouts import Layout
from .augmentation import Augmentation

Task = Literal["classification", "regression", "masked_lm", "embedding"]
Pooling = Literal["auto", "mean", "cls"]
LearningRateSchedule = Literal["linear", "constant", "rewinding", "sawtooth"]

MODEL = "model"
"""Word for the model that the recipe is applied to."""


@dataclass(frozen=True)
class Schedule:
    """When sparsity grows, in fractions of the stage's steps.

    Attributes:
        initial: sparsity at ``begin``.
        begin: where pruning begins.
        end: where the final sparsity is reached.
        stop: the last moment at which masks move; constant afterwards.
        updates: how many times masks move between ``begin`` and ``stop``.
    """

    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.5
    stop: float = 0.8
    updates: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end <= self.stop <= 1:
            raise ValueError(
                f"schedule: expected 0 <= begin <= end <= stop <= 1, got begin {self.begin}, end "
                f"{self.end}, stop {self.stop}"
            )
        if not 0 <= self.initial < 1 or self.updates < 1:
            raise ValueError(
                f"schedule: expected initial in [0, 1) and updates >= 1, got {self.initial} and "
                f"{self.updates}"
            )


@dataclass(frozen=True)
class Pruning:
    """What is pruned, and how.

    Attributes:
        method: a key of ``PRUNERS``.
        structure: pattern such as "2:4", "unstructured@0.9" or "block:1x4@0.8"; null where a
            method has none (lock, soft movement).
        scope: rank the weights of each matrix by themselves, or those of all matrices together.
        schedule: when sparsity grows, for methods that are gradual.
        pooler: prune the pooler's matrix as well.
        include: regular expression; only linears in whose name it is found.
        exclude: regular expression; never those.
        per: component ("query", "ffn_in", ...) or regular expression -> structure (null: leave
            dense), instead of ``structure``; the first that fits holds.
        options: the method's own keys; in a recipe they stand beside these.
    """

    method: str
    structure: str | None = None
    scope: Literal["uniform", "global"] = "uniform"
    schedule: Schedule = field(default_factory=Schedule)
    pooler: bool = False
    include: str | None = None
    exclude: str | None = None
    per: Mapping[str, str | None] = field(default_factory=dict)
    options: Any = None


@dataclass(frozen=True)
class Distillation:
    """Weights of the loss terms that compare with the teacher; 0 leaves a term out.

    Attributes:
        task: weight of the loss on the labels (of a masked LM: on the masked tokens).
        logits: soft labels, or the distance to the teacher's output in a regression.
        temperature: of the soft labels.
        hidden: hidden states, mean squared error, embeddings and every layer.
        attention: attention scores before the softmax, mean squared error.
        squarehead: hidden states, squared error over the teacher's own power, layer by layer.
        embedding: sentence vectors, 1 - cosine.
        similarity: cosines between the sentences of a batch, mean squared error.
        contrastive: section of the contrastive terms, null for none.
    """

    task: float = 1.0
    logits: float = 0.0
    temperature: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    squarehead: float = 0.0
    embedding: float = 0.0
    similarity: float = 0.0
    contrastive: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Quantization:
    """Fake quantization while training.

    Attributes:
        weights: "int8" or "int4".
        scales: weights that share a scale: "tensor", "row", "chunk:R" or "group:G".
        activations: "static" (uint8, learned range), "dynamic" (uint8, per token), "symmetric"
            (int8, per token) or "none".
        outputs: components or regular expressions of layers whose output is quantized again, static
            activations only; Prune Once For All does so for query, key and ffn_in.
        start: static only, fraction of the stage at which inputs begin to be quantized; until then
            their ranges are only observed.
        freeze: static only, fraction at which ranges stop moving.
        pooler: quantize the pooler's matrix as well.
        include: regular expression; only linears in whose name it is found.
        exclude: regular expression; never those.
        per: component ("query", "ffn_in", ...) or regular expression -> "int8", "int4" or null
            (leave float), instead of ``weights``; the first that fits holds.
    """

    weights: str = "int8"
    scales: str = "tensor"
    activations: Literal["static", "dynamic", "symmetric", "none"] = "static"
    outputs: tuple[str, ...] = ()
    start: float = 0.0
    freeze: float = 0.5
    pooler: bool = False
    include: str | None = None
    exclude: str | None = None
    per: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.freeze <= 1:
            raise ValueError(
                f"quantization: expected 0 <= start <= freeze <= 1, got start {self.start}, freeze "
                f"{self.freeze}"
            )


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
        accumulation: parts that a batch is cut into, to save memory.
        clip: largest norm of the gradient; 0 leaves it as it is.
        max_length: tokens a text is cut to; null leaves it at the tokenizer's limit.
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
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"stage {self.name!r}: give either epochs or steps")
        if (self.epochs or self.steps or 0) <= 0:
            raise ValueError(f"stage {self.name!r}: epochs or steps must be above 0")
        if self.batch_size < 1 or self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(
                f"stage {self.name!r}: batch_size {self.batch_size} must be a multiple of "
                f"accumulation {self.accumulation}, both at least 1"
            )
        self._check_ranges()
        if self.distillation is not None and self.teacher is None:
            raise ValueError(f"stage {self.name!r}: distillation needs a teacher")
        if self.task == "embedding" and self.teacher is None:
            raise ValueError(f"stage {self.name!r}: task embedding has no labels; give a teacher")
        self._check_augmentation()
        if not self.name or "/" in self.name or self.name in (MODEL, ".", ".."):
            raise ValueError(f"stage name {self.name!r}: expected a word that can name a folder")

    def _check_augmentation(self) -> None:
        if self.augment is None:
            return
        if self.task == "masked_lm" or self.distillation is None:
            raise ValueError(
                f"stage {self.name!r}: augment: only a teacher can answer copies of texts; "
                "expected a distillation section, and another task than masked_lm"
            )
        labels = self.task != "embedding" and self.distillation.task != 0
        if labels or self.distillation.contrastive is not None:
            raise ValueError(
                f"stage {self.name!r}: augment: copies of texts have no labels of their own; "
                "expected distillation.task 0 and no distillation.contrastive"
            )

    def _check_ranges(self) -> None:
        # Written so that NaN is refused too.
        fitting = {
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "final_learning_rate": (0 <= self.final_learning_rate < math.inf, "0 or more"),
            "lr_cycles": (self.lr_cycles >= 1, "1 or more"),
            "warmup": (0 <= self.warmup < 1, "a fraction from 0 to below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "clip": (0 <= self.clip < math.inf, "above 0, or 0 for no clipping"),
            "max_length": (self.max_length is None or self.max_length >= 1, "1 or more, or null"),
            "dropout": (self.dropout is None or 0 <= self.dropout < 1, "0 to below 1, or null"),
            "mask_probability": (0 < self.mask_probability <= 1, "above 0 to 1"),
        }
        for key, (fits, expected) in fitting.items():
            if not fits:
                raise ValueError(
                    f"stage {self.name!r}: {key}: expected {expected}, got {getattr(self, key)}"
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a YAML file would hold them; options stand beside their neighbours."""
        data = asdict(self)
        for stage in data["stages"]:
            if stage["pruning"] is not None:
                stage["pruning"].update(stage["pruning"].pop("options") or {})
        return data
