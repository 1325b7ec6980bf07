"""Timing several callables against each other in one run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_CALLS_PER_TURN = 1000


@dataclass(frozen=True)
class Timing:
    """Durations of single calls, in seconds, ascending."""

    samples: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """Seconds below which ``percent`` of the calls lie (linear between samples)."""
        position = (len(self.samples) - 1) * percent / 100
        low = math.floor(position)
        high = min(low + 1, len(self.samples) - 1)
        return self.samples[low] + (self.samples[high] - self.samples[low]) * (position - low)

    @property
    def median(self) -> float:
        """The 50th percentile in seconds."""
        return self.percentile(50)


def measure_interleaved(
    callables: Mapping[str, Callable[[], object]],
    *,
    warmup: int = 2,
    min_rounds: int = 10,
    min_seconds: float = 0.5,
    turn_seconds: float = 0.002,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time callables in turns, so that drift of the machine meets all of them alike.

    In each round every callable has one turn; the order is reversed from round to round, so that
    none always follows the same neighbour. A turn begins with one call that is not counted: it
    takes the caches, and the threads that still spin, over from the callable before. Counted calls
    follow until the turn should last ``turn_seconds``, judged by the warm-up.

    Args:
        callables: name to function without arguments.
        warmup: calls of each before anything is counted, at least 1.
        min_rounds: rounds to make at least, at least 1.
        min_seconds: counted time to reach on average over the callables, so that a slow one does
            not have to wait for a fast one.
        turn_seconds: length of one turn for callables that are shorter than that.
        clock: seconds, monotonic.

    Returns:
        A Timing for each name.

    Raises:
        ValueError: no callables, or a count below 1.
    """
    if not callables or warmup < 1 or min_rounds < 1:
        raise ValueError(
            f"measure_interleaved: expected callables, warmup >= 1 and min_rounds >= 1, got "
            f"{len(callables)} callables, warmup={warmup}, min_rounds={min_rounds}"
        )
    calls = {name: _warm_up(call, warmup, turn_seconds, clock) for name, call in callables.items()}
    samples: dict[str, list[float]] = {name: [] for name in callables}
    order = list(callables)
    rounds, spent = 0, 0.0
    while rounds < min_rounds or spent < min_seconds * len(callables):
        for name in order:
            call = callables[name]
            call()
            for _ in range(calls[name]):
                start = clock()
                call()
                samples[name].append(clock() - start)
                spent += samples[name][-1]
        order.reverse()
        rounds += 1
    return {name: Timing(tuple(sorted(times))) for name, times in samples.items()}


def _warm_up(
    call: Callable[[], object], warmup: int, turn_seconds: float, clock: Callable[[], float]
) -> int:
    """Run ``call`` and return how many calls fill a turn."""
    shortest = math.inf
    for _ in range(warmup):
        start = clock()
        call()
        shortest = min(shortest, clock() - start)
    if shortest <= 0:
        return MAX_CALLS_PER_TURN
    return max(1, min(MAX_CALLS_PER_TURN, math.ceil(turn_seconds / shortest)))
