"""The table of experiments: what is done, on which tasks, against which ablation, and its goal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLASSIFICATION = ("banking77", "mr")
DENSE = "dense FP32"
TEACHER = "teacher"
"""Stage of the recipes that fine-tunes the dense model; it is trained once and given to them."""


@dataclass(frozen=True)
class Experiment:
    """One way to a compressed model.

    It starts from the dense model fine-tuned with the same seed, or trains by a recipe in which
    that model is the teacher. With neither ``one_shot`` nor ``recipe`` the dense model is packed.

    Attributes:
        name: unique.
        group: heading in the table: a paper, or "one-shot".
        one_shot: arguments of ``prune``, calibration aside.
        recipe: name of a recipe that comes along.
        until: last stage of the recipe that is run; None for all.
        given: stage of the recipe -> experiment whose checkpoint stands for it.
        changes: "STAGE.KEY=VALUE" for the recipe: how it is scaled down.
        per_task: task -> further changes.
        search: a configuration of at most this size (of FP32) is searched for stage "compress".
        quick: further changes for the quick mode.
        convert: arguments of ``convert``; what a checkpoint states about quantization needs none.
        tasks: to run it on.
        against: experiment that lacks the one thing whose worth is asked.
        goal: least share of the dense FP32 metric; of "stsb_open" the largest loss in Spearman.
    """

    name: str
    group: str
    one_shot: Mapping[str, Any] | None = None
    recipe: str | None = None
    until: str | None = None
    given: Mapping[str, str] = field(default_factory=lambda: {TEACHER: DENSE})
    changes: tuple[str, ...] = ()
    per_task: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    search: float | None = None
    quick: tuple[str, ...] = ()
    convert: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = CLASSIFICATION
    against: str | None = None
    goal: float | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Experiments whose runs come first: they are gone on from, or measured against."""
        if self.name == DENSE:
            return ()
        return tuple(dict.fromkeys((DENSE, *(self.given.values() if self.recipe else ()))))
