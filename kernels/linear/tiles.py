"""What a launch of a linear layer is told beside its operands: tiles, schedule, workspace."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Config(NamedTuple):
    """Tiles and schedule of one launch.

    Attributes:
        block_m: tokens of a tile; a power of two from 16 on, as all blocks.
        block_n: outputs of a tile.
        block_k: inputs multiplied at a time.
        split_k: programs that share a tile's inputs.
        num_warps: warps of a program.
        num_stages: tiles of inputs in flight.
        group_m: blocks of tokens that go through the outputs together, for reuse in L2.
        tma: whether tiles of dense weights and their inputs are fetched by the copy engine, which
            GPUs have from sm_90 on.
    """

    block_m: int
    block_n: int
    block_k: int
    split_k: int = 1
    num_warps: int = 4
    num_stages: int = 3
    group_m: int = 8
    tma: bool = False


class Workspace(NamedTuple):
    """Memory that launches of one stream may share, one after the other.

    Attributes:
        partials: float32 or int32, parts of sums; None where no config splits inputs.
        counters: int32, zeros before and after every launch.
    """

    partials: Tensor | None
    counters: Tensor


def workspace_needs(tokens: int, out_features: int, config: Config) -> tuple[int, int]:
    """Elements of ``Workspace.partials`` and of ``Workspace.counters``."""
    if config.split_k == 1:
        return 0, 0
    tiles = -(-tokens // config.block_m) * -(-out_features // config.block_n)
    return tiles * config.split_k * config.block_m * config.block_n, tiles


def row_blocks(tokens: int, config: Config) -> int:
    """Elements of ``Target.counters`` that a dynamic scheme needs."""
    return -(-tokens // config.block_m)
