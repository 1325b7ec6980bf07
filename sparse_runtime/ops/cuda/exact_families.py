"""Unstructured weights on sparse tensor cores, without loss (docs/kernels/exact_2to4.md)."""

from __future__ import annotations

from typing import Any, ClassVar

from .family import Family
from .machine import Machine
from .mma_families import TWO_OF_FOUR_GAIN, MmaDense, two_of_four_bytes
from .predict import Work
from .problem import Problem

MOST_REST = 0.75
"""With a rest in more of its slabs, a weight takes about as many products as a dense one."""

LARGEST_TOKENS = 128
SMALL_SHARED = (86, 89, 120, 121)
"""Compute capabilities with 100 KB of shared memory, too little for 16-bit values in the largest
tiles (docs/kernels/cuda_compiled.md)."""


class MmaExact(MmaDense):
    """Unstructured weights as 2:4 and a rest: slabs with a rest are multiplied twice."""

    name: ClassVar[str] = "mma.exact"
    layout: ClassVar[str] = "mma.exact"
    dense: ClassVar[bool] = False
    structure: ClassVar[str] = "exact"
    gain: ClassVar[float] = TWO_OF_FOUR_GAIN

    def rejects(self, problem: Problem) -> str | None:
        if problem.structure != "unstructured":
            return "multiplies unstructured weights"
        if problem.rest > MOST_REST:
            return f"about {problem.rest:.0%} of its slabs exceed 2:4"
        return super().rejects(problem)

    def remark(self, problem: Problem) -> str:
        return f" (2:4, and a rest in about {problem.rest:.0%} of its slabs)"

    def work(self, problem: Problem, tokens: int, machine: Machine) -> Work:
        work = super().work(problem, tokens, machine)
        return work._replace(operations=work.operations * (1 + problem.rest))

    def configs(self, packed: Any, problem: Problem, tokens: int, machine: Machine) -> list[Any]:
        found = super().configs(packed, problem, tokens, machine)
        if problem.product == "half" and machine.capability in SMALL_SHARED:
            return [config for config in found if config.block_m < LARGEST_TOKENS]
        return found

    def stored_bytes(self, problem: Problem) -> float:
        return (1 + problem.rest) * two_of_four_bytes(problem)


EXACT_FAMILIES: tuple[Family, ...] = (MmaExact(),)
