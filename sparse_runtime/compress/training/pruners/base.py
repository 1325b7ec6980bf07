"""What a method of pruning during training is to the trainer.

Order of the calls, where steps count from 0::

    check                                  as the recipe is read, of the class
    check_model                            before the first stage is trained, of the class
    attach                                 once; a saved state is loaded after it
    for each step:
        begin_step(step, total)            masks and schedules move here
        loss + penalty(), backward, gradients clipped
        before_optimizer(step)             gradients are there
        optimizer
        end_step(step)                     projections of weights; the step's learning rate still
                                           holds, gradients are not cleared yet
    finish                                 once; what is left in the weights is baked as they are
                                           written

Masks and whatever else a pruner puts on a weight are parametrizations that derive from
:class:`~sparse_runtime.compress.masks.WeightTransform`: these :func:`~.writing.write_checkpoint`
bakes into what it writes, after ``finish``, with fake quantization, which comes after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from ...patterns import floor_units
from ...schedules import CubicSparsity
from ..schema import WrongValue, require

if TYPE_CHECKING:
    from ...patterns import Pattern
    from ..context import Training
    from ..sections import Pruning, Schedule


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
        needs_pattern: whether its sections state patterns; others may not.
        follows_schedule: whether it prunes at the events of ``pruning.schedule``.
        ranks_together: whether it can rank all matrices together (scope global).
        learns_scores: whether it trains parameters of its own, which no ``freeze`` reaches.
        reads_gradients: components or regular expressions of matrices whose gradients it asks for:
            none may be frozen.
        patterns: name of a linear -> the pattern it is to have; empty for methods without
            a pattern (lock).
        model: the student, from ``attach`` on.
        linears: name -> the linears to prune, from ``attach`` on.
        training: the training it takes part in, from ``attach`` on.
    """

    Options: ClassVar[type[Any]] = NoOptions
    needs_pattern: ClassVar[bool] = True
    follows_schedule: ClassVar[bool] = False
    ranks_together: ClassVar[bool] = False
    learns_scores: ClassVar[bool] = False
    reads_gradients: ClassVar[tuple[str, ...]] = ()

    model: nn.Module
    linears: dict[str, nn.Linear]
    training: Training

    def __init__(self, settings: Pruning, patterns: Mapping[str, Pattern]) -> None:
        self.settings = settings
        self.patterns = dict(patterns)

    @classmethod
    def check(cls, settings: Pruning) -> None:
        """Refuse a section that the method cannot follow on any model; when the recipe is read.

        Overrides call this first.

        Raises:
            WrongValue: with the key.
        """
        patterns = settings.stated_patterns
        if not isinstance(settings.options, cls.Options):
            raise WrongValue("options", f"expected {cls.Options.__name__}, got {settings.options}")
        if not cls.needs_pattern and (settings.structure is not None or settings.per):
            raise WrongValue(
                "structure" if settings.structure is not None else "per",
                f"method {settings.method} takes no structure; leave structure and per out",
            )
        if cls.needs_pattern and not patterns:
            raise WrongValue(
                "structure",
                f"method {settings.method} needs a structure, for example 2:4 or unstructured@0.9",
            )
        if settings.scope == "global" and not cls.ranks_together:
            raise WrongValue(
                "scope", f"method {settings.method} takes each matrix by itself; say uniform"
            )
        cls._check_schedule(settings)
        if settings.scope == "uniform" and cls.ranks_together:
            floor = settings.options.floor
            common = cls.Options().floor
            expected = f"{common:g}, for it counts under scope global alone"
            require(floor=(floor, floor == common, expected))

    @classmethod
    def _check_schedule(cls, settings: Pruning) -> None:
        schedule = settings.schedule
        if not cls.follows_schedule and schedule != type(schedule)():
            raise WrongValue(
                "schedule", f"method {settings.method} has no pruning events; leave it out"
            )
        reached = [one.final_sparsity for one in settings.stated_patterns.values()]
        if reached and schedule.initial > max(reached):
            raise WrongValue(
                "schedule.initial",
                f"expected at most {max(reached):g}, the sparsity to reach, got "
                f"{schedule.initial:g}",
            )

    @classmethod
    def check_model(
        cls,
        settings: Pruning,
        patterns: Mapping[str, Pattern],
        model: nn.Module,
        linears: Mapping[str, nn.Linear],
        steps: int,
    ) -> None:
        """Refuse what the method cannot do to this model; before anything is trained.

        Overrides call this first.

        Args:
            settings: the section.
            patterns: name of a linear -> pattern.
            model: the student.
            linears: name -> the linears to prune.
            steps: of the stage.

        Raises:
            WrongValue: with the key.
        """
        for name, pattern in patterns.items():
            rows, cols = linears[name].weight.shape
            structure = pattern.structure
            if structure.rows > rows or structure.cols > cols or structure.m > cols:
                raise WrongValue(
                    "structure",
                    f"{pattern} does not fit {name}, a matrix [{rows}, {cols}]; expected groups or "
                    "blocks no larger than it, for example 2:4 or block:1x4@0.8",
                )
        if settings.scope == "global" and patterns:
            stated = sorted({str(pattern) for pattern in patterns.values()})
            if len(stated) > 1:
                raise WrongValue(
                    "scope",
                    f"global ranks all matrices for one pattern, got {', '.join(stated)}; say "
                    "uniform, or give all matrices one",
                )
            _check_floor(settings.options.floor, patterns, linears)

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Prepare the model. Overrides call this first.

        Raises:
            WrongValue: as :meth:`check_model`.
        """
        self.check_model(self.settings, self.patterns, model, linears, training.total_steps)
        self.model = model
        self.linears = dict(linears)
        self.training = training

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

        Parametrizations may stay: they are baked as the weights are written.
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


def _check_floor(
    floor: float, patterns: Mapping[str, Pattern], linears: Mapping[str, nn.Linear]
) -> None:
    """What each matrix keeps may not be more than all of them are to keep."""
    pattern = next(iter(patterns.values()))
    if pattern.structure.kind == "nm":
        return
    units = [pattern.units(*linears[name].weight.shape) for name in patterns]
    kept = sum(units) - round(pattern.final_sparsity * sum(units))
    least = sum(floor_units(floor, count) for count in units)
    if least > kept:
        raise WrongValue(
            "floor",
            f"{floor:g} alone keeps {least} of {sum(units)} weights or blocks, and {pattern} keeps "
            f"{kept}; expected a smaller share, or a lower sparsity",
        )


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
    every = max(1, -(-(stop - begin) // schedule.updates))
    return CubicSparsity(min(schedule.initial, final), final, begin, end, stop, every)


class Masked(Protocol):
    """A parametrization that prunes."""

    mask: Tensor
    """bool [out, in]"""


def mask_metrics(masks: Mapping[str, Masked]) -> dict[str, float]:
    """Share of zeros over all masked matrices, as "sparsity"."""
    kept = sum(int(mask.mask.sum()) for mask in masks.values())
    return {"sparsity": 1 - kept / sum(mask.mask.numel() for mask in masks.values())}
