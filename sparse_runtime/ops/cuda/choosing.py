"""Which family runs a layer for how many tokens: by measured times, else by predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from ...kernels.linear.operands import Epilogue
from .families import FAMILIES
from .family import Family
from .machine import Machine
from .predict import predict
from .problem import Problem
from .timings import Timings

REGIMES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Numbers of tokens at which families are compared; each stands for those from the one before."""

ANY_TOKENS = 2**40

MOST_LAYOUTS = 3
"""Of one weight: as many as dense families have, so that some are nowhere slower than these."""

WORTH_A_LAYOUT = 1.25
"""How much faster one more layout must make some regime, for it costs its bytes."""


class Estimate(NamedTuple):
    """What a family takes for a product.

    Attributes:
        family: the kernel or library.
        config: its configuration, where one was measured; None: its default, if it has any.
        microseconds: with the weight in memory.
    """

    family: Family
    config: Any
    microseconds: float


@dataclass(frozen=True)
class Regime:
    """Families compared at one number of tokens.

    Attributes:
        least: fewest tokens that it stands for.
        tokens: the most, at which times were taken; the last regime's stand for any number.
        estimates: the fastest of each family, by name.
        source: where measured times come from; None: they are predicted.
    """

    least: int
    tokens: int
    estimates: Mapping[str, Estimate]
    source: str | None

    def best(self, layouts: Iterable[str]) -> Estimate | None:
        """The fastest of those that have one of these layouts, where there is one."""
        wanted = set(layouts)
        found = [e for e in self.estimates.values() if e.family.layout in wanted]
        return min(found, key=_time, default=None)

    @property
    def dense(self) -> float:
        """Microseconds of the fastest dense family: nothing slower is run."""
        return min(e.microseconds for e in self.estimates.values() if e.family.dense)


class Choice(NamedTuple):
    """What runs for some numbers of tokens.

    Attributes:
        most_tokens: the largest number.
        estimate: family, configuration and its time.
        regime: what it was compared with.
    """

    most_tokens: int
    estimate: Estimate
    regime: Regime


def compare(
    problem: Problem,
    machine: Machine,
    tables: Sequence[Timings],
    regimes: Sequence[int] = REGIMES,
    epilogue: Epilogue | None = None,
) -> list[Regime]:
    """Every regime with what each family takes there.

    Args:
        problem: the product.
        machine: the GPU.
        tables: measured times; the first that knows a regime is taken.
        regimes: ascending numbers of tokens.
        epilogue: what follows the product; None: nothing that some family could not do.
    """
    families = [family for family in FAMILIES if not why_not(family, problem, epilogue, machine)]
    found, least = [], 1
    for tokens in regimes:
        able = [f for f in families if f.least_tokens(problem) <= least]
        measured = _measured(problem, tokens, able, tables)
        if measured is None:
            estimates = [_predicted(f, problem, tokens, machine) for f in able if f.predicted]
            source = None
        else:
            estimates, source = measured
        found.append(Regime(least, tokens, {e.family.name: e for e in estimates}, source))
        least = tokens + 1
    return found


def why_not(
    family: Family,
    problem: Problem,
    epilogue: Epilogue | None,
    machine: Machine | None = None,
) -> str | None:
    """Why a family cannot run a product and what follows it, or None.

    Args:
        family: the kernels.
        problem: the product.
        epilogue: what follows it; None: nothing that some family could not do.
        machine: the GPU; None: one that every family runs on.
    """
    if machine is not None and (reason := family.unfit(machine)):
        return reason
    return family.rejects(problem) or (None if epilogue is None else family.refuses(epilogue))


def _measured(
    problem: Problem, tokens: int, families: Sequence[Family], tables: Sequence[Timings]
) -> tuple[list[Estimate], str] | None:
    """From the first table that has a dense family's time; others can only be compared with it."""
    for table in tables:
        timings = table.of(problem, tokens)
        estimates = []
        for family in families:
            timing = timings.get(family.name)
            if timing is None:
                continue
            try:
                estimates.append(Estimate(family, family.decode(timing.config), timing.cold))
            except ValueError:  # of a table that was shipped for other kernels
                continue
        if any(estimate.family.dense for estimate in estimates):
            return estimates, table.source
    return None


def _predicted(family: Family, problem: Problem, tokens: int, machine: Machine) -> Estimate:
    work = family.work(problem, tokens, machine)
    return Estimate(family, None, predict(problem, tokens, work, machine))


def choose(regimes: Sequence[Regime]) -> tuple[Choice, ...]:
    """What runs each regime: the fastest family of the layouts that serve all best.

    No regime is slower than the fastest dense family there, whatever its layout. The fewest layouts
    that reach this are taken, and one more where it makes some regime ``WORTH_A_LAYOUT`` times as
    fast; at most ``MOST_LAYOUTS``.
    """
    layouts = sorted({e.family.layout for regime in regimes for e in regime.estimates.values()})
    chosen: list[Estimate] | None = None
    for count in range(1, MOST_LAYOUTS + 1):
        found = [_serving(regimes, some) for some in combinations(layouts, count)]
        serving = [estimates for estimates in found if estimates is not None]
        if not serving:
            continue
        best = min(serving, key=lambda estimates: _loss(regimes, estimates))
        if chosen is None:
            chosen = best
            continue
        if _largest_gain(chosen, best) >= WORTH_A_LAYOUT:
            chosen = best
        break
    assert chosen is not None  # the dense families' layouts serve together
    choices = [Choice(r.tokens, e, r) for r, e in zip(regimes, chosen, strict=True)]
    return (*choices[:-1], choices[-1]._replace(most_tokens=ANY_TOKENS))


def _time(estimate: Estimate) -> float:
    return estimate.microseconds


def _serving(regimes: Sequence[Regime], layouts: tuple[str, ...]) -> list[Estimate] | None:
    """The fastest of these layouts in every regime; None where one has none as fast as dense."""
    found = []
    for regime in regimes:
        best = regime.best(layouts)
        if best is None or best.microseconds > regime.dense:
            return None
        found.append(best)
    return found


def _loss(regimes: Sequence[Regime], estimates: Sequence[Estimate]) -> float:
    """How much slower than the fastest there is, summed over regimes."""
    fastest = (min(map(_time, regime.estimates.values())) for regime in regimes)
    return sum(_time(e) / least for e, least in zip(estimates, fastest, strict=True))


def _largest_gain(few: Sequence[Estimate], more: Sequence[Estimate]) -> float:
    return max(_time(one) / _time(other) for one, other in zip(few, more, strict=True))
