"""How sparsity and learning rate move over the steps of a training run: functions of the step."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class CubicSparsity:
    """Sparsity that rises fast first: ``final - (final - initial) (1 - progress)^3``.

    Source: Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878.

    Attributes:
        initial: sparsity at ``begin``; 0 before it.
        final: sparsity from ``end`` on.
        begin: first step at which the mask is computed.
        end: step at which ``final`` is reached.
        stop: last step at which the mask moves; None is ``end``. Between the two it is still
            computed anew, at ``final``; behind, it is frozen.
        every: steps between updates; the last update is at ``stop`` even where they do not divide.
    """

    initial: float
    final: float
    begin: int
    end: int
    stop: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1:
            raise ValueError(
                f"schedule: expected 0 <= initial <= final < 1, got initial={self.initial}, "
                f"final={self.final}"
            )
        if not 0 <= self.begin <= self.end <= self.last or self.every < 1:
            raise ValueError(
                "schedule: expected 0 <= begin <= end <= stop and every >= 1, got "
                f"begin={self.begin}, end={self.end}, stop={self.stop}, every={self.every}"
            )

    @property
    def last(self) -> int:
        """The last step at which the mask moves."""
        return self.end if self.stop is None else self.stop

    def value(self, step: int) -> float:
        """The sparsity at a step."""
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        left = 1 - (step - self.begin) / (self.end - self.begin)
        return self.final - (self.final - self.initial) * left**3

    def is_update(self, step: int) -> bool:
        """Whether the mask is computed anew at a step."""
        if not self.begin <= step <= self.last:
            return False
        return step == self.last or (step - self.begin) % self.every == 0


def linear_factor(step: int, *, total: int, warmup: int = 0) -> float:
    """What the learning rate is multiplied with: up to 1 over ``warmup`` steps, then down to 0."""
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def rewinding_factor(
    step: int, *, total: int, begin: int, end: int, every: int, warmup: int = 0
) -> float:
    """Linear decay in which pruning takes no time: at each event the clock goes back to ``begin``.

    Behind ``end`` it goes on from ``begin``, so that the whole decay is left for the pruned model:
    it spans ``total - (end - begin)`` steps. Warm-up comes once, by the step itself. Source: Zafrir
    et al., "Prune Once for All", arXiv 2111.05754, as its authors' code has it.
    """
    if step < warmup:
        return step / warmup
    span = total - (end - begin)
    if step >= end:
        clock = step - (end - begin)
    else:
        clock = step if step < begin else begin + (step - begin) % every
    return max(0.0, (span - clock) / max(1, span - warmup))


def sawtooth_factor(step: int, *, total: int, every: int, low: float, end: int) -> float:
    """From 1 down to ``low`` every ``every`` steps until ``end``, then once more until ``total``.

    Source: Kurtic et al., "The Optimal BERT Surgeon", arXiv 2203.07259: 8e-5 to 8e-6 between two
    pruning steps.
    """
    start, length = (end, total - end) if step >= end else (step - step % every, every)
    return 1 - (1 - low) * min(1.0, (step - start) / max(1, length))


def linear_schedule(optimizer: Optimizer, *, total: int, warmup: int = 0) -> LambdaLR:
    """Learning rate by :func:`linear_factor`.

    Args:
        optimizer: whose learning rates are the highest ones.
        total: steps of the run; 0 is reached behind the last.
        warmup: steps up from 0.
    """
    _require(total=total, warmup=warmup)
    return LambdaLR(optimizer, lambda step: linear_factor(step, total=total, warmup=warmup))


def rewinding_schedule(
    optimizer: Optimizer,
    *,
    total: int,
    prune_begin: int,
    prune_end: int,
    every: int,
    warmup: int = 0,
) -> LambdaLR:
    """Learning rate by :func:`rewinding_factor`.

    Args:
        optimizer: whose learning rates are the highest ones.
        total: steps of the run.
        prune_begin: first pruning event, to which the clock goes back.
        prune_end: step of the last event that rewinds.
        every: steps between events.
        warmup: steps up from 0.
    """
    _require(total=total, warmup=warmup, prune_begin=prune_begin, prune_end=prune_end)
    _require_interval(every)
    return LambdaLR(
        optimizer,
        lambda step: rewinding_factor(
            step, total=total, begin=prune_begin, end=prune_end, every=every, warmup=warmup
        ),
    )


def sawtooth(
    optimizer: Optimizer, *, total: int, every: int, low: float = 0.1, end: int | None = None
) -> LambdaLR:
    """Learning rate by :func:`sawtooth_factor`.

    Args:
        optimizer: whose learning rates are the highest ones.
        total: steps of the run.
        every: steps of a tooth.
        low: share of the learning rate at a tooth's end.
        end: where the last tooth begins, which lasts until ``total``; None: every tooth has its
            ``every`` steps.
    """
    last = total if end is None else end
    _require(total=total, end=last)
    _require_interval(every)
    return LambdaLR(
        optimizer,
        lambda step: sawtooth_factor(step, total=total, every=every, low=low, end=last),
    )


def _require(*, total: int, **steps: int) -> None:
    for name, step in steps.items():
        if not 0 <= step <= total:
            raise ValueError(f"{name} {step}: expected a step from 0 to total={total}")


def _require_interval(every: int) -> None:
    if every < 1:
        raise ValueError(f"every {every}: expected at least 1 step")
