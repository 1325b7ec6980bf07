"""What is chosen for a layer on its device, and how ``explain()`` says so."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from ...kernels.linear.operands import Epilogue
from .choosing import ANY_TOKENS, Choice, choose, compare, why_not
from .families import FAMILIES
from .family import Family
from .machine import Machine, machine_of
from .problem import Problem
from .stacked import StackedLayers
from .timings import own_timings, shipped_timings


def choices_for(layers: StackedLayers, device: torch.device) -> tuple[Choice, ...]:
    """The fastest by this machine's times, else by the package's, else by predictions."""
    return choices_of(layers.problem, device, layers.epilogue)


def choices_of(
    problem: Problem, device: torch.device, epilogue: Epilogue | None = None
) -> tuple[Choice, ...]:
    """:func:`choices_for` of a kind of product."""
    machine = machine_of(device)
    tables = (own_timings(machine), shipped_timings(machine))
    return choose(compare(problem, machine, tables, epilogue=epilogue))


def describe(
    problem: Problem,
    choices: Sequence[Choice],
    epilogue: Epilogue | None = None,
    machine: Machine | None = None,
) -> str:
    """What runs which numbers of tokens, its time, launches and the others' times, and which
    families do not fit.

    Neighbouring regimes of one family are one entry, with the times of the last.
    """
    lines = []
    for (family, _), found in groupby(choices, key=lambda c: (c.estimate.family, c.regime.source)):
        run = list(found)
        lines.append(_line(family, problem, run[0].regime.least, run[-1]))
    rejected = [
        f"{family.name}: {reason}"
        for family in FAMILIES
        if (reason := why_not(family, problem, epilogue, machine))
    ]
    return "; ".join([*lines, *(f"not {text}" for text in rejected)])


def _line(family: Family, problem: Problem, least: int, last: Choice) -> str:
    """One family for the numbers of tokens from ``least`` to the last choice's."""
    when = f" from {least} tokens" if least > 1 else ""
    if last.most_tokens != ANY_TOKENS:
        when = f" for {least} to {last.most_tokens} tokens"
    regime = last.regime
    how = "predicted" if regime.source is None else f"measured ({regime.source})"
    others = [other for other in regime.estimates.values() if other.family != family]
    others.sort(key=lambda other: other.microseconds)
    compared = ", ".join(f"{other.family.name} {other.microseconds:.1f}" for other in others)
    name, time = f"{family.name}{family.remark(problem)}", f"{last.estimate.microseconds:.1f} us"
    if (launches := family.launches(problem)) > 1:
        time += f" in {launches} launches"
    text = f"{name}{when}: {how} {time} at {regime.tokens} tokens"
    return f"{text} ({compared})" if compared else text
