"""What a method of pruning during training is to the trainer.

Order of the calls, where steps and epochs count from 0::

    attach                                 once; a saved state is loaded after it
    for each epoch:
        begin_epoch(epoch)                 not again when resumed inside the epoch
        for each step:
            begin_step(step, total)        masks and schedules move here
            loss + penalty(), backward, gradients clipped
            before_optimizer(step)         gradients are there
            optimizer
            end_step(step)                 projections of weights; the step's learning rate still
                                           holds, gradients are not cleared yet
    finish                                 once; the trainer bakes what is left in the weights

Masks and whatever else a pruner puts on a weight are parametrizations that derive from
:class:`~sparse_runtime.compress.masks.WeightTransform`: these :func:`~.masks.bake` writes into the
weight after ``finish``, together with fake quantization, which comes after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from ...schedules import CubicSparsity

if TYPE_CHECKING:
    from ...patterns import Pattern
    from ..context import Training
    from ..recipe import Pruning, Schedule


@dataclass(frozen=True)
class NoOptions:
    """Options of a pruner that has none of its own."""


class Pruner:
    """A method of pruning, driven by the trainer.

    Whatever the model needs (parametrizations, parameters, buffers) is put into it by ``attach``:
    later only values change, so that a saved state always fits. A subclass overrides what it
    needs and keeps its masks valid at every step.

    Attributes:
        Options: frozen dataclass of the keys that a recipe may give this method besides those of
            every method; unknown keys are refused when the recipe is read.
        settings: the stage's ``pruning`` section, with ``settings.options`` an ``Options``.
        patterns: name of a linear -> the pattern it is to have; empty for methods without
            a pattern (lock).
        model: the student, from ``attach`` on.
        linears: name -> the linears to prune, from ``attach`` on.
        training: the training it takes part in, from ``attach`` on.
    """

    Options: ClassVar[type[Any]] = NoOptions
    needs_pattern: ClassVar[bool] = True

    model: nn.Module
    linears: dict[str, nn.Linear]
    training: Training

    def __init__(self, settings: Pruning, patterns: Mapping[str, Pattern]) -> None:
        self.settings = settings
        self.patterns = dict(patterns)

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Prepare the model. Overrides call this first."""
        self.model = model
        self.linears = dict(linears)
        self.training = training

    def require_one_ranking(self) -> None:
        """For methods that may rank all matrices together.

        Raises:
            ValueError: scope global, and patterns that differ.
        """
        if self.settings.scope == "global" and len(set(self.patterns.values())) > 1:
            raise ValueError(
                "pruning: scope global ranks all matrices for one pattern; 'per' gives several: "
                "say scope uniform"
            )

    def begin_epoch(self, epoch: int) -> None:
        """Before the first step of an epoch."""

    def begin_step(self, step: int, total: int) -> None:
        """Before the forward pass of step ``step`` of ``total``."""

    def penalty(self) -> Tensor | None:
        """A scalar added to the loss of each optimizer step, with gradients."""
        return None

    def before_optimizer(self, step: int) -> None:
        """Gradients of the step are there, clipped."""

    def end_step(self, step: int) -> None:
        """Right after the optimizer moved the weights."""

    def finish(self) -> None:
        """Final projection: the weights that the layers multiply with fit their patterns.

        Parametrizations may stay: the trainer bakes them.
        """

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer groups for parameters of the pruner's own (scores), with their ``lr``.

        These parameters must be in the model by then. All other parameters are grouped by the
        trainer. The stage's schedule scales each group's ``lr`` alike.
        """
        return []

    def metrics(self) -> dict[str, float]:
        """Numbers to log: sparsity, residuals and the like."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that exact resumption needs beyond the model's own state dict.

        Tensors, numbers, strings, lists and dicts of them: it is saved by ``torch.save`` and read
        back with ``weights_only``.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a state, after ``attach``."""


def cubic(schedule: Schedule, final: float, total: int) -> CubicSparsity:
    """A recipe's schedule in steps: the last update comes before the last step at the latest.

    Args:
        schedule: in fractions.
        final: sparsity to reach.
        total: steps of the stage.
    """
    begin, end, stop = (
        min(round(share * total), total - 1)
        for share in (schedule.begin, schedule.end, schedule.stop)
    )
    every = max(1, (stop - begin) // schedule.updates)
    return CubicSparsity(min(schedule.initial, final), final, begin, end, stop, every)


class Masked(Protocol):
    """A parametrization that prunes."""

    mask: Tensor
    """bool [out, in]"""


def mask_metrics(masks: Mapping[str, Masked]) -> dict[str, float]:
    """Share of zeros over all masked matrices, as "sparsity"."""
    kept = sum(int(mask.mask.sum()) for mask in masks.values())
    return {"sparsity": 1 - kept / sum(mask.mask.numel() for mask in masks.values())}
