"""What is wrong with a stage whatever it is run on: found when the recipe is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .pruners import PRUNERS
from .recipe import Stage
from .schema import WrongValue
from .terms import distillation_terms


def check_stage(stage: Stage) -> None:
    """Refuse what no model and no data would make right.

    Raises:
        ValueError: with stage and key.
    """
    if stage.pruning is not None:
        with in_stage(stage, "pruning."):
            if stage.pruning.method not in PRUNERS:
                raise WrongValue(
                    "method", f"expected one of {', '.join(PRUNERS)}, got {stage.pruning.method!r}"
                )
            PRUNERS[stage.pruning.method].check(stage.pruning)
    with in_stage(stage):
        _check_rewinding(stage)
        if stage.teacher is not None and stage.distillation is None:
            raise WrongValue(
                "teacher",
                f"nothing asks {stage.teacher!r} without a distillation section; add one, or leave "
                "the teacher out",
            )
        settings = stage.distillation
        terms = [] if settings is None else distillation_terms(settings, stage.task)
        if not terms and not asks_labels(stage):
            raise WrongValue("distillation", "every weight of the loss is 0; expected one above 0")


def _check_rewinding(stage: Stage) -> None:
    if stage.lr_schedule != "rewinding" or stage.pruning is None:
        return
    if not PRUNERS[stage.pruning.method].follows_schedule:
        raise WrongValue(
            "lr_schedule",
            f"rewinding goes back at pruning events, and method {stage.pruning.method} has none; "
            "say linear",
        )


def asks_labels(stage: Stage) -> bool:
    """Whether its loss has a term on the labels (of a masked LM: on the masked tokens)."""
    weight = 1.0 if stage.distillation is None else stage.distillation.task
    return stage.task != "embedding" and weight > 0


@contextmanager
def in_stage(stage: Stage, section: str = "") -> Iterator[None]:
    """Errors that begin with a key, with the stage and the section before it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"stage {stage.name!r}, {section}{error}") from error
