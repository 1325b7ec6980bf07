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
        settings = stage.distillation
        terms = [] if settings is None else distillation_terms(settings, stage.task)
        if not terms and not asks_labels(stage):
            raise WrongValue("distillation", "every weight of the loss is 0; expected one above 0")


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
