"""Time on a GPU: of kernels alone, and of calls as a user waits for them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch

from sparse_runtime.benchmarks.gpu.records import error_line
from sparse_runtime.testing import Timing

LAUNCHES_IN_A_GRAPH = 20
"""At least so many calls are captured together: the gap between two replays is shared by them."""

CYCLES_PER_SECOND = 2e9
"""No GPU's clock is faster by much: so many cycles take a second or longer."""


class Series(NamedTuple):
    """Calls that are timed together.

    Attributes:
        replay: makes them.
        calls: how many.
        head_start: cycles that the GPU waits before the first.
    """

    replay: Callable[[], object]
    calls: int
    head_start: int = 0


def captured(calls: Sequence[Callable[[], object]]) -> Series:
    """These calls, repeated in turn, in a CUDA graph.

    Calls on different weights, one after the other, find them as a model does: where all of them
    together exceed the second-level cache, in memory.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:  # compiles and allocates what a capture may not
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    rounds = math.ceil(LAUNCHES_IN_A_GRAPH / len(calls))
    graph = torch.cuda.CUDAGraph()
    # On the same stream: libraries keep memory by stream, and may not ask for any in a capture.
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for call in calls:
                call()
    return Series(graph.replay, rounds * len(calls))


def queued(calls: Sequence[Callable[[], object]]) -> Series:
    """These calls, repeated in turn, for what no graph can hold.

    The GPU waits until all of them are in its queue, so what launches take is not timed, unless a
    call itself waits for the GPU.
    """
    rounds = math.ceil(LAUNCHES_IN_A_GRAPH / len(calls))

    def replay() -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    replay()  # compiles and allocates
    torch.cuda.synchronize()
    start = time.perf_counter()
    replay()
    seconds = time.perf_counter() - start
    torch.cuda.synchronize()
    return Series(replay, rounds * len(calls), int(2 * seconds * CYCLES_PER_SECOND))


def replay_seconds(series: Series) -> float:
    """Seconds of the GPU for one call of a series."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if series.head_start:
        torch.cuda._sleep(series.head_start)
    start.record()
    series.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / series.calls


def time_kernels(
    contenders: Mapping[str, Sequence[Callable[[], object]]],
    rounds: int = 15,
    uncaptured: Collection[str] = (),
) -> dict[str, Timing | str]:
    """Time series of kernels in turns.

    Args:
        contenders: name -> the same operation on one or several sets of operands.
        rounds: replays of each, interleaved.
        uncaptured: those that no CUDA graph can hold: they are launched one by one.

    Returns:
        name -> seconds of one call on the GPU, or the error that kept it from running: one
        contender's failure does not cost the others.
    """
    series: dict[str, Series] = {}
    results: dict[str, Timing | str] = {}
    for name, calls in contenders.items():
        try:
            series[name] = (queued if name in uncaptured else captured)(calls)
            replay_seconds(series[name])
        except Exception as error:
            torch.cuda.synchronize()
            results[name] = error_line(error)
            series.pop(name, None)
    samples: dict[str, list[float]] = {name: [] for name in series}
    order = list(series)
    for _ in range(rounds):
        for name in order:
            samples[name].append(replay_seconds(series[name]))
        order.reverse()
    return results | {name: Timing(tuple(sorted(found))) for name, found in samples.items()}


def time_calls(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 7, seconds: float = 0.1
) -> dict[str, tuple[Timing, Timing]]:
    """Time whole calls in turns, two ways.

    Args:
        contenders: name -> a call that has already run once.
        rounds: turns of each, interleaved.
        seconds: of one turn.

    Returns:
        name -> (latency: from the call until the GPU is done with it, one at a time; throughput:
        seconds a call when calls follow each other and only the last is waited for)
    """
    latency: dict[str, list[float]] = {name: [] for name in contenders}
    throughput: dict[str, list[float]] = {name: [] for name in contenders}
    counts = {name: _calls_in(call, seconds / 2) for name, call in contenders.items()}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            call, count = contenders[name], counts[name]
            call()
            torch.cuda.synchronize()
            for _ in range(count):
                start = time.perf_counter()
                call()
                torch.cuda.synchronize()
                latency[name].append(time.perf_counter() - start)
            start = time.perf_counter()
            for _ in range(count):
                call()
            torch.cuda.synchronize()
            throughput[name].append((time.perf_counter() - start) / count)
        order.reverse()
    return {
        name: (Timing(tuple(sorted(latency[name]))), Timing(tuple(sorted(throughput[name]))))
        for name in contenders
    }


def _calls_in(call: Callable[[], object], seconds: float) -> int:
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return max(2, min(200, math.ceil(seconds / (time.perf_counter() - start))))
