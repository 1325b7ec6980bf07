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

WORTH_A_SECOND = 1.25
"""How much faster a second layout must make some regime, for it costs its bytes once more."""


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

    def best(self, layouts: Iterable[str]) -> Estimate:
        """The fastest of those that have one of these layouts."""
        wanted = set(layouts)
        found = [e for e in self.estimates.values() if e.family.layout in wanted]
        return min(found, key=lambda estimate: estimate.microseconds)


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
        if any(estimate.family.layout == "dense" for estimate in estimates):
            return estimates, table.source
    return None


def _predicted(family: Family, problem: Problem, tokens: int, machine: Machine) -> Estimate:
    work = family.work(problem, tokens, machine)
    return Estimate(family, None, predict(problem, tokens, work, machine))


def choose(regimes: Sequence[Regime]) -> tuple[Choice, ...]:
    """What runs each regime: the fastest family of the one or two layouts that serve all best.

    No regime is slower than the fastest dense family there. A second layout is taken where it makes
    some regime ``WORTH_A_SECOND`` times as fast.
    """
    layouts = {e.family.layout for regime in regimes for e in regime.estimates.values()}
    everywhere = [layout for layout in sorted(layouts) if _serves(regimes, (layout,))]
    single = min((("dense",), *((layout,) for layout in everywhere)), key=_loss(regimes))
    couples = [pair for pair in combinations(sorted(layouts), 2) if _serves(regimes, pair)]
    chosen: tuple[str, ...] = single
    if couples:
        couple = min(couples, key=_loss(regimes))
        if _largest_gain(regimes, single, couple) >= WORTH_A_SECOND:
            chosen = couple
    choices = [Choice(regime.tokens, regime.best(chosen), regime) for regime in regimes]
    return (*choices[:-1], choices[-1]._replace(most_tokens=ANY_TOKENS))


def _serves(regimes: Sequence[Regime], layouts: tuple[str, ...]) -> bool:
    """Whether some family of these runs every regime, none slower than dense."""
    for regime in regimes:
        if not any(e.family.layout in layouts for e in regime.estimates.values()):
            return False
        if regime.best(layouts).microseconds > regime.best(("dense",)).microseconds:
            return False
    return True


def _loss(regimes: Sequence[Regime]) -> Any:
    def loss(layouts: tuple[str, ...]) -> float:
        """How much slower than the fastest there is, summed over regimes."""
        every = {e.family.layout for regime in regimes for e in regime.estimates.values()}
        return sum(r.best(layouts).microseconds / r.best(every).microseconds for r in regimes)

    return loss


def _largest_gain(
    regimes: Sequence[Regime], single: tuple[str, ...], couple: tuple[str, ...]
) -> float:
    return max(r.best(single).microseconds / r.best(couple).microseconds for r in regimes)
