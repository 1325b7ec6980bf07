"""What is chosen for a layer on its device, and how ``explain()`` says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .choosing import ANY_TOKENS, Choice, choose, compare
from .families import FAMILIES
from .machine import machine_of
from .problem import Problem
from .stacked import StackedLayers
from .timings import own_timings, shipped_timings


def choices_for(layers: StackedLayers, device: torch.device) -> tuple[Choice, ...]:
    """The fastest by this machine's times, else by the package's, else by predictions."""
    return choices_of(layers.problem, device)


def choices_of(problem: Problem, device: torch.device) -> tuple[Choice, ...]:
    """:func:`choices_for` of a kind of product."""
    machine = machine_of(device)
    tables = (own_timings(machine), shipped_timings(machine))
    return choose(compare(problem, machine, tables))


def describe(problem: Problem, choices: Sequence[Choice]) -> str:
    """Each choice with its bytes, its time and the others', and which families do not fit."""
    lines = [_line(choice, least) for choice, least in zip(choices, _least(choices), strict=True)]
    rejected = [
        f"{family.name}: {reason}" for family in FAMILIES if (reason := family.rejects(problem))
    ]
    refused = f"; not {'; not '.join(rejected)}" if rejected else ""
    return "; ".join(lines) + refused


def _least(choices: Sequence[Choice]) -> Iterator[int]:
    yield 1
    for choice in choices[:-1]:
        yield choice.most_tokens + 1


def _line(choice: Choice, least: int) -> str:
    family, _, time = choice.estimate
    regime = choice.regime
    if choice.most_tokens == ANY_TOKENS:
        when = f" from {least} tokens" if least > 1 else ""
    else:
        when = f" up to {choice.most_tokens} tokens"
    how = "predicted" if regime.source is None else f"measured ({regime.source})"
    others = sorted(regime.estimates.values(), key=lambda estimate: estimate.microseconds)
    compared = ", ".join(
        f"{other.family.name} {other.microseconds:.1f}"
        for other in others
        if other.family != family
    )
    text = f"{family.name}{when}: {how} {time:.1f} us at {regime.tokens} tokens"
    return f"{text} ({compared})" if compared else text
