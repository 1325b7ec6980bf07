"""Time on a GPU: of kernels alone, and of calls as a user waits for them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from sparse_runtime.benchmarks.gpu.records import error_line
from sparse_runtime.testing import Timing

LAUNCHES_IN_A_GRAPH = 20
"""At least so many calls are captured together: the gap between two replays is shared by them."""


def captured(calls: Sequence[Callable[[], object]]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A CUDA graph of these calls, repeated in turn, and how many calls it holds.

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
    return graph, rounds * len(calls)


def replay_seconds(graph: torch.cuda.CUDAGraph, calls: int) -> float:
    """Seconds of the GPU for one call of a captured series."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def time_kernels(
    contenders: Mapping[str, Sequence[Callable[[], object]]], rounds: int = 15
) -> dict[str, Timing | str]:
    """Time series of kernels in turns.

    Args:
        contenders: name -> the same operation on one or several sets of operands.
        rounds: replays of each, interleaved.

    Returns:
        name -> seconds of one call on the GPU, or the error that kept it from running: one
        contender's failure does not cost the others.
    """
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]] = {}
    results: dict[str, Timing | str] = {}
    for name, calls in contenders.items():
        try:
            graphs[name] = captured(calls)
            replay_seconds(*graphs[name])
        except Exception as error:
            torch.cuda.synchronize()
            results[name] = error_line(error)
            graphs.pop(name, None)
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    order = list(graphs)
    for _ in range(rounds):
        for name in order:
            samples[name].append(replay_seconds(*graphs[name]))
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
