"""Sections of a recipe's stage, as frozen dataclasses that refuse what nothing can be made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...spec import DYNAMIC_ACTIVATIONS, INTEGER_RANGES, ActivationSpec, ValueSpec
from ..oneshot.layer_format import SOME_RANGE
from ..patterns import Pattern
from .contrastive_term import ContrastiveSection
from .schema import WrongValue, regular_expression, require


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
                f"expected 0 <= begin <= end <= stop <= 1, got begin {self.begin}, end "
                f"{self.end}, stop {self.stop}"
            )
        if not 0 <= self.initial < 1 or self.updates < 1:
            raise ValueError(
                f"expected initial in [0, 1) and updates >= 1, got {self.initial} and "
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

    def __post_init__(self) -> None:
        _check_names(self)
        for key, text in self._patterns().items():
            _pattern(key, text)

    @property
    def stated_patterns(self) -> dict[str, Pattern]:
        """Every pattern in the section, by the key that states it."""
        return {key: _pattern(key, text) for key, text in self._patterns().items()}

    def _patterns(self) -> dict[str, str]:
        texts = {"structure": self.structure, **_under("per", self.per)}
        return {key: text for key, text in texts.items() if text is not None}


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
    contrastive: ContrastiveSection | None = None

    def __post_init__(self) -> None:
        weights = ("task", "logits", "hidden", "attention", "squarehead", "embedding", "similarity")
        for key in weights:
            value = getattr(self, key)
            require(**{key: (value, 0 <= value < math.inf, "a weight of 0 or more")})
        fits = 0 < self.temperature < math.inf
        require(temperature=(self.temperature, fits, "a number above 0, for example 2"))


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

    @property
    def measured_as(self) -> ActivationSpec | None:
        """How inputs are quantized where times are taken, whatever a static range will be."""
        if self.activations == "static":
            return SOME_RANGE
        return DYNAMIC_ACTIVATIONS.get(self.activations)

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.freeze <= 1:
            raise ValueError(
                f"expected 0 <= start <= freeze <= 1, got start {self.start}, freeze {self.freeze}"
            )
        if self.activations != "static":
            only = f"for it belongs to activations static, not {self.activations}"
            require(
                start=(self.start, self.start == Quantization.start, f"0, {only}"),
                freeze=(self.freeze, self.freeze == Quantization.freeze, f"0.5, {only}"),
            )
        _check_names(self)
        for index, name in enumerate(self.outputs):
            regular_expression(f"outputs[{index}]", name)
        if self.outputs and self.activations != "static":
            raise WrongValue(
                "outputs",
                f"expected activations static beside quantized outputs, got {self.activations}",
            )
        try:
            ValueSpec.parse("int8", self.scales)
        except ValueError:
            raise WrongValue(
                "scales",
                f"{self.scales!r}: expected tensor, row, chunk:R or group:G, for example chunk:32",
            ) from None
        for key, values in {"weights": self.weights, **_under("per", self.per)}.items():
            if values not in (*INTEGER_RANGES, None):
                raise WrongValue(
                    key, f"{values!r}: expected {' or '.join(INTEGER_RANGES)}, for example int8"
                )


def _under(key: str, section: Mapping[str, str | None]) -> dict[str, str | None]:
    return {f"{key}.{name}": value for name, value in section.items()}


def _check_names(section: Pruning | Quantization) -> None:
    regular_expression("include", section.include)
    regular_expression("exclude", section.exclude)
    for name in section.per:
        regular_expression(f"per.{name}", name)


def _pattern(key: str, text: str) -> Pattern:
    try:
        return Pattern.parse(text)
    except ValueError:
        raise WrongValue(
            key,
            f"{text!r}: expected N:M (N below M, M to 16), unstructured@SPARSITY or "
            "block:RxC@SPARSITY (sides to 4096), SPARSITY from 0 to below 1; for example 2:4, "
            "unstructured@0.9 or block:1x4@0.8",
        ) from None
