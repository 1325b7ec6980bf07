"""The kernels of the CUDA library for compute capability 9.0, on wgmma and TMA."""

from __future__ import annotations

from typing import Any, ClassVar

from ...kernels.linear import linear_hopper
from ...kernels.linear.linear_cuda import MmaWeight
from ...kernels.linear.linear_hopper import CAPABILITY, candidates, clocks_of
from .family import Family
from .machine import Machine
from .mma_families import MmaDense, MmaTwoOfFour
from .predict import Work
from .problem import Problem
from .stacked import StackedLayers
from .work import LIBRARY_SHARE, range_bytes


class HopperDense(MmaDense):
    """Every weight, zeros included."""

    name: ClassVar[str] = "hopper.dense"
    layout: ClassVar[str] = "hopper.dense"
    dense: ClassVar[bool] = True
    # No emulator checks wgmma: until a GPU has run them, they run only where `tune` has measured
    # and checked them on this one.
    predicted: ClassVar[bool] = False

    def unfit(self, machine: Machine) -> str | None:
        if machine.capability == CAPABILITY:
            return None
        return f"runs on compute capability 9.0 alone, this is {machine.capability / 10}"

    def rejects(self, problem: Problem) -> str | None:
        return super().rejects(problem) or linear_hopper.missing()

    def pack(self, layers: StackedLayers) -> MmaWeight:
        return linear_hopper.pack(layers.matrix, self.structure)

    def work(self, problem: Problem, tokens: int, machine: Machine) -> Work:
        config = self.configs(None, problem, tokens, machine)[0]
        clocks = clocks_of(config, problem.product, self.structure, problem.in_features)
        # The shorter of product and epilogue is hidden, or counts little.
        share = clocks.ideal / max(clocks.main, clocks.ending)
        tiles = -(-tokens // config.block_m) * -(-problem.out_features // config.block_n)
        parts = tokens * problem.out_features * 4.0 * config.split_k if config.split_k > 1 else 0.0
        return Work(
            weight_bytes=self.stored_bytes(problem),
            operations=2.0 * tokens * problem.weights,
            # What cuBLASLt should reach with the same instructions; not measured.
            peak_share=LIBRARY_SHARE[problem.product] * share,
            programs=tiles * config.split_k,
            launches=self.launches(problem),
            extra_bytes=2 * parts,
            between_bytes=2 * range_bytes(problem, tokens),
        )

    def configs(self, packed: Any, problem: Problem, tokens: int, machine: Machine) -> list[Any]:
        sizes = (tokens, problem.out_features, problem.in_features)
        return list(candidates(problem.product, self.structure, *sizes))


class HopperTwoOfFour(HopperDense, MmaTwoOfFour):
    """N:M weights of which no four inputs, from a multiple of four on, have more than two."""

    name: ClassVar[str] = "hopper.2:4"
    layout: ClassVar[str] = "hopper.2:4"
    dense: ClassVar[bool] = False


HOPPER_FAMILIES: tuple[Family, ...] = (HopperDense(), HopperTwoOfFour())
