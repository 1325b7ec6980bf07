"""How a linear layer is cut into tiles and programs, and what memory that takes."""

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
    """

    block_m: int
    block_n: int
    block_k: int
    split_k: int = 1
    num_warps: int = 4
    num_stages: int = 3
    group_m: int = 8


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


def default_config(
    product: str, tokens: int, out_features: int, in_features: int, capability: int
) -> Config:
    """A good configuration of the dense family, where nothing was measured.

    Args:
        product: "int8", "half" (bf16, fp16) or "fp32".
        tokens: rows.
        out_features: outputs.
        in_features: inputs.
        capability: 80 for sm_80.
    """
    block_m = 16 if tokens <= 16 else 32 if tokens <= 64 else 64 if tokens <= 1024 else 128
    return Config(block_m, 64, 64 if product == "half" else 128 if product == "int8" else 32)
