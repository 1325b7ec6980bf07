"""The hand-written kernels of the CUDA library, for dense weights and for two of four inputs."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from ...kernels import cuda_loading
from ...kernels.linear import linear_cuda
from ...kernels.linear.linear_cuda import MmaConfig, MmaWeight
from ...kernels.linear.operands import Epilogue
from ...spec import Structure
from .family import Family
from .machine import Machine
from .predict import Work
from .problem import Problem
from .stacked import StackedLayers
from .variants import LibraryVariant, Variant
from .work import range_bytes

MMA_SHARE = {"half": 0.6, "int8": 0.6}
"""Of the peak, what the dense kernel should reach where mma.sync is the peak's instruction, as our
Triton kernel does there; not measured yet."""

HOPPER_SHARE = {"half": 0.35, "int8": 0.35}
"""The same from sm_90 on, assumed: mma.sync reaches under two thirds of what wgmma does, and tiles
of 128 x 128 ask L2 for more than it gives (docs/kernels/cuda_library.md)."""

TWO_OF_FOUR_GAIN = 1.2
"""Over the dense kernel where products decide, assumed: others report 1.15 to 1.4 for 2:4, and the
tiles' traffic allows 1.23, as computed."""


class MmaDense(Family):
    """Every weight, zeros included."""

    name: ClassVar[str] = "mma.dense"
    layout: ClassVar[str] = "mma.dense"
    dense: ClassVar[bool] = True
    config_type: ClassVar[Any] = MmaConfig
    structure: ClassVar[str] = "dense"
    gain: ClassVar[float] = 1.0

    def rejects(self, problem: Problem) -> str | None:
        order = self.name.partition(".")[0]
        if reason := cuda_loading.left_out(order) or cuda_loading.not_launched():
            return reason
        return "multiplies int8, bf16 and fp16" if problem.dtype == "fp32" else None

    def refuses(self, epilogue: Epilogue) -> str | None:
        return "takes no zero points of weights" if epilogue.weight_zero is not None else None

    def launches(self, problem: Problem) -> int:
        return 2 if problem.dynamic else 1

    def pack(self, layers: StackedLayers) -> MmaWeight:
        return linear_cuda.pack(layers.matrix, self.structure)

    def variant(self, packed: Any, config: Any, layers: StackedLayers) -> Variant:
        needs = partial(linear_cuda.workspace_needs, weight=packed, config=config)
        return LibraryVariant(linear_cuda.linear, packed, config, needs)

    def work(self, problem: Problem, tokens: int, machine: Machine) -> Work:
        config = self.configs(None, problem, tokens, machine)[0]
        tiles = -(-tokens // config.block_m) * -(-problem.out_features // config.block_n)
        parts = tokens * problem.out_features * 4.0 * config.split_k if config.split_k > 1 else 0.0
        share = HOPPER_SHARE if machine.capability >= 90 else MMA_SHARE
        return Work(
            weight_bytes=self.stored_bytes(problem),
            operations=2.0 * tokens * problem.weights,
            peak_share=share[problem.product] * self.gain,
            programs=tiles * config.split_k,
            launches=self.launches(problem),
            extra_bytes=2 * parts,
            between_bytes=2 * range_bytes(problem, tokens),
        )

    def configs(self, packed: Any, problem: Problem, tokens: int, machine: Machine) -> list[Any]:
        sizes = (tokens, problem.out_features, problem.in_features)
        return linear_cuda.candidates(problem.product, *sizes, machine.capability)


class MmaTwoOfFour(MmaDense):
    """N:M weights of which no four inputs, from a multiple of four on, have more than two."""

    name: ClassVar[str] = "mma.2:4"
    layout: ClassVar[str] = "mma.2:4"
    dense: ClassVar[bool] = False
    structure: ClassVar[str] = "2:4"
    gain: ClassVar[float] = TWO_OF_FOUR_GAIN

    def rejects(self, problem: Problem) -> str | None:
        if not _fits(Structure.parse(problem.structure)):
            return "multiplies 2:4, and N:M that is 2:4 as well"
        return super().rejects(problem)

    def stored_bytes(self, problem: Problem) -> float:
        return two_of_four_bytes(problem)


def two_of_four_bytes(problem: Problem) -> float:
    """Of every weight in 2:4."""
    metadata = problem.weights / 8  # two bits for each of the values that are kept
    return problem.weights * problem.itemsize / 2 + metadata


def _fits(structure: Structure) -> bool:
    """Whether each four inputs lie in one group of at most two, or in two groups of one."""
    if structure.kind != "nm":
        return False
    n, m = structure.n, structure.m
    return (n <= 2 and m % 4 == 0) or (n == 1 and m == 2)


MMA_FAMILIES: tuple[Family, ...] = (MmaDense(), MmaTwoOfFour())
