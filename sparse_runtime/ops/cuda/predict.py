"""How long a launch should take, from what the GPU can do at most (docs/kernels/cuda_linear.md)."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from .machine import Machine
from .problem import Problem

LAUNCH_SECONDS = 2e-6
"""One more node of a CUDA graph; assumed: 1.3 to 2.5 us."""

BANDWIDTH_SHARE = 0.9
"""Of the memory's bandwidth, what a kernel that streams reaches; assumed."""

L2_FACTOR = 1.6
"""Bandwidth of L2 over that of the memory; assumed (H100: 5.5 over 3.35 TB/s)."""


class Work(NamedTuple):
    """What a family does for one product.

    Attributes:
        weight_bytes: read of the weight.
        operations: multiplications and additions.
        peak_share: of the peak, what its main loop reaches with every multiprocessor at work.
        programs: that run side by side; None where a library divides the work as suits it.
        launches: kernels.
        extra_bytes: moved through L2 beside operands and results, while it multiplies.
        between_bytes: written by one kernel and read by the next, which waits for it.
    """

    weight_bytes: float
    operations: float
    peak_share: float
    programs: int | None
    launches: int = 1
    extra_bytes: float = 0.0
    between_bytes: float = 0.0


def predict(problem: Problem, tokens: int, work: Work, machine: Machine) -> float:
    """Microseconds of one product whose weights come from memory.

    The slower of reading and multiplying, what waits between its kernels, and the launches.
    """
    moved = tokens * (problem.in_features + problem.out_features) * problem.itemsize
    streaming = machine.bytes_per_second * BANDWIDTH_SHARE
    reading = work.weight_bytes / streaming + (moved + work.extra_bytes) / (streaming * L2_FACTOR)
    rate = machine.operations[problem.product] * work.peak_share
    if work.programs is not None:
        waves = ceil(work.programs / machine.processors)
        rate *= work.programs / (waves * machine.processors)
    seconds = work.launches * LAUNCH_SECONDS + max(reading, work.operations / rate)
    seconds += work.between_bytes / (streaming * L2_FACTOR)
    return 1e6 * seconds
