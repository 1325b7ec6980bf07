"""A stage's learning-rate schedule, in steps."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..schedules import linear_schedule, rewinding_schedule, sawtooth
from .pruners.base import cubic
from .recipe import Stage


def learning_rates(stage: Stage, optimizer: Optimizer, total: int) -> LambdaLR:
    """The schedule that a stage names, over ``total`` steps."""
    warmup = round(stage.warmup * total)
    if stage.lr_schedule == "linear":
        return linear_schedule(optimizer, total=total, warmup=warmup)
    if stage.lr_schedule == "constant":
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))
    if stage.lr_schedule == "rewinding":
        assert stage.pruning is not None  # as the stage has seen
        events = cubic(stage.pruning.schedule, 0.0, total)
        return rewinding_schedule(
            optimizer,
            total=total,
            prune_begin=events.begin,
            prune_end=events.end,
            every=events.every,
            warmup=warmup,
        )
    return sawtooth(
        optimizer,
        total=total,
        every=-(-total // stage.lr_cycles),
        low=stage.final_learning_rate / stage.learning_rate,
    )
