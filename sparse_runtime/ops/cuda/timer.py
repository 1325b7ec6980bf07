"""How long a launch takes on a GPU, as a node of a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch

from .machine import machine_of
from .trial import Launch, Trial

REPLAYS = 9
_LEAST_LAUNCHES = 20
_MOST_LAUNCHES = 400
_COPIES_BYTES = 2 << 30


def graph_microseconds(trial: Trial) -> tuple[float, float]:
    """Microseconds of a launch with the weight in memory, and with the weight in L2.

    Launches follow each other in one graph: in the first, each has a weight of its own, so many
    that one is gone from L2 before its turn comes again; in the second, all have the same. The
    median of several replays.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    beyond_l2 = 2 * machine_of(device).l2_bytes // max(trial.weight_bytes, 1) + 1
    affordable = max(2, _COPIES_BYTES // max(trial.weight_bytes, 1))
    count = max(2, min(beyond_l2, _MOST_LAUNCHES, affordable))
    copies = trial.copies(count)
    repeats = -(-_LEAST_LAUNCHES // count)
    cold = _replay(copies * repeats)
    return cold, _replay([trial.launch] * (count * repeats))


def _replay(launches: Sequence[Launch]) -> float:
    """Microseconds of one of these, in a graph."""
    launches[0]()  # compiled, and a library's handles made, before a capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(REPLAYS):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / len(launches))
    return median(times)
