"""Tiles and configurations of the kernels of csrc/cuda/hopper_linear, for compute capability 9.0
alone; :func:`.linear_cuda.linear` launches them (docs/kernels/cuda_hopper.md).

Which configuration should be fastest is computed in clock cycles, as in rules.py, and not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as pairs
from math import ceil
from typing import NamedTuple

from torch import Tensor

from .. import cuda_loading
from .linear_cuda import SPLITS, MmaConfig, MmaWeight, library
from .rules import EPILOGUE, EXCHANGE, ITEM_BYTES, L2_BYTES, LATENCY, MACHINES, STEP_INPUTS

CAPABILITY = 90
"""Machine code of sm_90a runs on no other."""


class Tile(NamedTuple):
    """A kernel's tile.

    Attributes:
        block_m: tokens.
        block_n: outputs.
        pingpong: one tile is multiplied while another is ended; else one follows the other.
        sharing_m: tiles of a cluster that fetch tokens once for all.
        sharing_n: the same of outputs.
    """

    block_m: int
    block_n: int
    pingpong: bool
    sharing_m: int = 1
    sharing_n: int = 1


TILES = (
    Tile(256, 128, pingpong=False, sharing_m=2),
    Tile(128, 128, pingpong=True, sharing_n=2),
    Tile(128, 64, pingpong=True),
    Tile(32, 64, pingpong=True),
)
"""csrc/cuda/hopper_linear/kernel.h has them the other way round: outputs x tokens."""


class Clocks(NamedTuple):
    """Of one tile on one multiprocessor.

    Attributes:
        ideal: products at the peak of dense ones.
        main: products and loads.
        ending: the epilogue.
    """

    ideal: float
    main: float
    ending: float


def pack(matrix: Tensor, structure: str) -> MmaWeight:
    """Bring a weight [out, in] into the kernels' order, on the device where it lies.

    Args:
        matrix: int8, bf16 or fp16.
        structure: "dense", or "2:4" for at most two nonzeros in every four inputs.

    Raises:
        ValueError: more than two of four inputs are nonzero.
    """
    packed = library().pack_hopper(matrix, structure)
    out_features, in_features = matrix.shape
    return MmaWeight(packed, matrix.dtype, structure, out_features, in_features, order="hopper")


def missing() -> str | None:
    """Why the loaded library has none of these kernels, or None."""
    found, reason = cuda_loading.load()
    if found is None or any(kernel.order == "hopper" for kernel in found.kernels):
        return reason
    return (
        "the CUDA library has no kernels for sm_90a: CUTLASS's headers were not there to build them"
    )


def candidates(
    product: str, structure: str, tokens: int, out_features: int, in_features: int
) -> list[MmaConfig]:
    """Every configuration that fits, the best first by its clock cycles.

    Args:
        product: "int8" or "half" (bf16, fp16).
        structure: "dense" or "2:4".
        tokens: rows.
        out_features: outputs.
        in_features: inputs.
    """

    def order(config: MmaConfig) -> tuple[float, int]:
        cost = cycles(config, product, structure, tokens, out_features, in_features)
        return cost, -config.block_m * config.block_n

    return sorted(_fitting(product, in_features), key=order)


def _fitting(product: str, in_features: int) -> Iterator[MmaConfig]:
    steps, rest = divmod(in_features, STEP_INPUTS[product])
    for tile, split in pairs(TILES, SPLITS):
        # TMA finds where a split begins at whole steps alone.
        if split == 1 or (rest == 0 and steps % split == 0 and steps >= 2 * split):
            yield MmaConfig(tile.block_m, tile.block_n, split)


def cycles(
    config: MmaConfig,
    product: str,
    structure: str,
    tokens: int,
    out_features: int,
    in_features: int,
) -> float:
    """Clock cycles of a launch, to compare with other configurations of the same product."""
    tiles = ceil(tokens / config.block_m) * ceil(out_features / config.block_n)
    rounds = ceil(tiles * config.split_k / MACHINES[CAPABILITY].processors)
    clocks = clocks_of(config, product, structure, in_features)
    if _tile(config).pingpong:
        shorter, longer = sorted((clocks.main, clocks.ending))
        return LATENCY + rounds * longer + shorter
    return LATENCY + rounds * (clocks.main + clocks.ending)


def clocks_of(config: MmaConfig, product: str, structure: str, in_features: int) -> Clocks:
    """What a tile's share of the inputs takes."""
    tile, sparse = _tile(config), structure == "2:4"
    m, n, inputs = config.block_m, config.block_n, ceil(in_features / config.split_k)
    ideal = m * n * inputs / MACHINES[CAPABILITY].products[product]
    # Both operands come from shared memory, whose 128 bytes a clock bound narrow tiles and 2:4: the
    # floors of docs/kernels/cuda_hopper.md.
    slower = 0.5 + 16 / m if sparse else max(1.0, 0.5 + 32 / m)
    size = ITEM_BYTES[product]
    weight = size / 2 + 0.125 if sparse else size
    fetched = inputs * (m * size / tile.sharing_m + n * weight / tile.sharing_n)
    ending = m * n * EPILOGUE
    if config.split_k > 1:
        ending += EXCHANGE + 8 * m * n / L2_BYTES
    return Clocks(ideal, max(ideal * slower, fetched / L2_BYTES), ending)


def _tile(config: MmaConfig) -> Tile:
    return next(t for t in TILES if (t.block_m, t.block_n) == (config.block_m, config.block_n))
