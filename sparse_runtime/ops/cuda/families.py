"""The ways to multiply by a weight on a GPU: our kernels, and libraries."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from ...formats.bits import pack_bits
from ...formats.block import to_blocks
from ...kernels.block import configs as block_configs
from ...kernels.block import layout as block_layout
from ...kernels.block.layout import BlockTiles
from ...kernels.defaults import Table
from ...kernels.dense import layout as dense_layout
from ...kernels.dense.layout import DenseWeight
from ...kernels.linear.configs import choices
from ...kernels.linear.tiles import Config, workspace_needs
from ...kernels.nm import configs as nm_configs
from ...kernels.nm import layout as nm_layout
from ...kernels.nm.layout import NMWeight
from ...kernels.unstructured import configs as expanding_configs
from ...kernels.unstructured import layout as unstructured_layout
from ...kernels.unstructured.layout import UnstructuredWeight
from ...spec import Structure
from .exact_families import EXACT_FAMILIES
from .family import Family
from .hopper_families import HOPPER_FAMILIES
from .machine import Machine
from .mma_families import MMA_FAMILIES
from .predict import Work
from .problem import Problem
from .stacked import StackedLayers
from .variants import Cublas, Cusparselt, Launcher, TritonVariant, Variant
from .work import DENSE_SHARE, EXPANDING_SHARE, block_work, library_work, tile_work

MOST_LIBRARY_OUTPUTS = 8192
"""A program of the epilogue's kernel holds whole rows (kernels/linear/epilogue_rows_triton.py)."""

LEAST_INT_MM_ROWS = 17
"""What torch._int_mm asks of its first operand on CUDA."""

_EXPANDED_GROUPS = (2, 4, 8, 16)


class TileFamily(Family):
    """Weights whose tiles our one tile kernel loads, each in its own way."""

    config_type: ClassVar[Any] = Config

    def variant(self, packed: Any, config: Any, layers: StackedLayers) -> Variant:
        from ...kernels.linear.linear_triton import linear

        return _tile_variant(linear, packed, config, layers)


class TritonDense(TileFamily):
    """Our dense kernel."""

    name: ClassVar[str] = "triton.dense"
    dense: ClassVar[bool] = True

    def rejects(self, problem: Problem) -> str | None:
        return None

    def pack(self, layers: StackedLayers) -> DenseWeight:
        return dense_layout.pack(layers.matrix)

    def work(self, problem: Problem, tokens: int, machine: Machine) -> Work:
        config = self.configs(None, problem, tokens, machine)[0]
        return tile_work(problem, tokens, config, self.stored_bytes(problem), DENSE_SHARE)

    def configs(self, packed: Any, problem: Problem, tokens: int, machine: Machine) -> list[Any]:
        sizes = (problem.product, tokens, problem.out_features, problem.in_features)
        return list(choices(*sizes, machine.capability))


class TritonUnstructured(TileFamily):
    """Our dense kernel on tiles that it expands from a bitmask."""

    name: ClassVar[str] = "triton.unstructured"
    layout: ClassVar[str] = "unstructured"

    def rejects(self, problem: Problem) -> str | None:
        return "multiplies weights with zeros" if problem.structure == "dense" else None

    def pack(self, layers: StackedLayers) -> UnstructuredWeight:
        return unstructured_layout.pack(layers.matrix)

    def work(self, problem: Problem, tokens: int, machine: Machine) -> Work:
        config = self.configs(None, problem, tokens, machine)[0]
        return tile_work(problem, tokens, config, self.stored_bytes(problem), EXPANDING_SHARE)

    def configs(self, packed: Any, problem: Problem, tokens: int, machine: Machine) -> list[Any]:
        return _expanding_configs(expanding_configs.TABLE, (), problem, tokens, machine)

    def stored_bytes(self, problem: Problem) -> float:
        entries = problem.weights / 4  # eight bytes for 32 inputs
        return problem.density * problem.weights * problem.itemsize + entries


class TritonNM(TileFamily):
    """Our dense kernel on tiles that it expands from N of M inputs."""

    name: ClassVar[str] = "triton.nm"
    layout: ClassVar[str] = "nm"

    def rejects(self, problem: Problem) -> str | None:
        structure = Structure.parse(problem.structure)
        if structure.kind != "nm" or structure.m not in _EXPANDED_GROUPS:
            return f"multiplies N:M weights with M of {', '.join(map(str, _EXPANDED_GROUPS))}"
        return None

    def pack(self, layers: StackedLayers) -> NMWeight:
        return nm_layout.pack(layers.matrix, layers.structure.n, layers.structure.m)

    def work(self, problem: Problem, tokens: int, machine: Machine) -> Work:
        config = self.configs(None, problem, tokens, machine)[0]
        return tile_work(problem, tokens, config, self.stored_bytes(problem), EXPANDING_SHARE)

    def configs(self, packed: Any, problem: Problem, tokens: int, machine: Machine) -> list[Any]:
        pattern = (problem.structure,)
        return _expanding_configs(nm_configs.TABLE, pattern, problem, tokens, machine)

    def stored_bytes(self, problem: Problem) -> float:
        masks = problem.weights / 8
        structure = Structure.parse(problem.structure)
        return problem.weights * problem.itemsize * structure.n / structure.m + masks


class TritonBlock(Family):
    """Our kernel for blocks: multiplies stored ones alone."""

    name: ClassVar[str] = "triton.block"
    layout: ClassVar[str] = "block"
    config_type: ClassVar[Any] = block_configs.BlockConfig

    def rejects(self, problem: Problem) -> str | None:
        structure = Structure.parse(problem.structure)
        if structure.kind != "block":
            return "multiplies blocks"
        return block_layout.why_not(structure.rows)

    def pack(self, layers: StackedLayers) -> BlockTiles:
        structure = layers.structure
        blocks = to_blocks(layers.matrix, structure)
        mask = (blocks != 0).any(-1)
        sides = (structure.rows, structure.cols)
        shape = (layers.matrix.shape[0], layers.matrix.shape[1])
        bitmask = pack_bits(mask).to(blocks.device)  # it packs in main memory
        return block_layout.pack(blocks[mask], bitmask, shape, sides)

    def variant(self, packed: Any, config: Any, layers: StackedLayers) -> Variant:
        from ...kernels.block.block_triton import block_linear

        def needs(tokens: int) -> tuple[int, int]:
            return block_configs.workspace_needs(packed, tokens, config)

        return TritonVariant(block_linear, packed, config, needs)

    def work(self, problem: Problem, tokens: int, machine: Machine) -> Work:
        rows = Structure.parse(problem.structure).rows
        return block_work(problem, tokens, self.stored_bytes(problem), rows)

    def configs(self, packed: Any, problem: Problem, tokens: int, machine: Machine) -> list[Any]:
        return block_configs.choices(packed, tokens, machine.capability)

    def stored_bytes(self, problem: Problem) -> float:
        return problem.density * problem.weights * problem.itemsize


class CublasFamily(Family):
    """cuBLASLt through PyTorch: ``torch._int_mm`` and ``torch.mm``."""

    name: ClassVar[str] = "cublas"
    dense: ClassVar[bool] = True

    def rejects(self, problem: Problem) -> str | None:
        if problem.out_features > MOST_LIBRARY_OUTPUTS:
            return f"takes up to {MOST_LIBRARY_OUTPUTS} outputs"
        sizes = (problem.out_features, problem.in_features)
        if problem.dtype == "int8" and any(size % 8 for size in sizes):
            return "torch._int_mm takes multiples of 8 outputs and inputs"
        return None

    def least_tokens(self, problem: Problem) -> int:
        return LEAST_INT_MM_ROWS if problem.dtype == "int8" else 1

    def launches(self, problem: Problem) -> int:
        return 2

    def pack(self, layers: StackedLayers) -> DenseWeight:
        return dense_layout.pack(layers.matrix)

    def variant(self, packed: Any, config: Any, layers: StackedLayers) -> Variant:
        return Cublas(packed.tiles[:, : layers.matrix.shape[1]])

    def work(self, problem: Problem, tokens: int, machine: Machine) -> Work:
        return library_work(problem, tokens, self.stored_bytes(problem))


class CusparseltFamily(Family):
    """cuSPARSELt through PyTorch, for two of four inputs."""

    name: ClassVar[str] = "cusparselt"
    layout: ClassVar[str] = "cusparselt"
    # Its speed differs from release to release, and so does what it takes.
    predicted: ClassVar[bool] = False

    def rejects(self, problem: Problem) -> str | None:
        if problem.structure != "2:4":
            return "multiplies 2:4 weights"
        if problem.dtype == "fp32":
            return "multiplies int8, bf16 and fp16"
        if problem.out_features > MOST_LIBRARY_OUTPUTS:
            return f"takes up to {MOST_LIBRARY_OUTPUTS} outputs"
        unit = 32 if problem.dtype == "int8" else 16
        if problem.out_features % unit or problem.in_features % unit:
            return f"takes multiples of {unit} outputs and inputs"
        return None

    def launches(self, problem: Problem) -> int:
        return 2

    def pack(self, layers: StackedLayers) -> Cusparselt:
        return Cusparselt(layers.matrix)

    def variant(self, packed: Any, config: Any, layers: StackedLayers) -> Variant:
        return packed

    def work(self, problem: Problem, tokens: int, machine: Machine) -> Work:
        return library_work(problem, tokens, self.stored_bytes(problem))

    def stored_bytes(self, problem: Problem) -> float:
        metadata = problem.weights / 8  # two bits for each of the values that are kept
        return problem.weights * problem.itemsize / 2 + metadata


def _tile_variant(
    launcher: Launcher, packed: Any, config: Config, layers: StackedLayers
) -> TritonVariant:
    """A weight for the kernel that multiplies tiles (kernels/linear/linear_triton.py)."""
    outputs = layers.matrix.shape[0]
    needs = partial(workspace_needs, out_features=outputs, config=config)
    return TritonVariant(launcher, packed, config, needs)


def _expanding_configs(
    table: Table, pattern: tuple[str, ...], problem: Problem, tokens: int, machine: Machine
) -> list[Config]:
    sizes = (tokens, problem.out_features, problem.in_features)
    gpu = (machine.capability, machine.processors)
    return expanding_configs.choices(table, pattern, problem.product, *sizes, *gpu)


FAMILIES: tuple[Family, ...] = (
    TritonDense(),
    CublasFamily(),
    TritonUnstructured(),
    TritonNM(),
    TritonBlock(),
    CusparseltFamily(),
    *MMA_FAMILIES,
    *EXACT_FAMILIES,
    *HOPPER_FAMILIES,
)

DENSE_FAMILIES = frozenset(family.name for family in FAMILIES if family.dense)
"""Those that every other one is compared with."""
