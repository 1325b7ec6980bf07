"""How a block-sparse linear layer is cut into programs, and what memory that takes.

No measured tables yet: the defaults follow from counting bytes (docs/kernels/triton_block.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .layout import BlockTiles
from .schedule import SHORTEST_PART

SHARED_OF_TWO = {80: 80 * 1024, 90: 112 * 1024}
"""Bytes of shared memory that leave room for a second program on a multiprocessor."""

GROUP_BYTES = {80: 8 << 20, 90: 16 << 20}
"""Bytes of input that may stay in L2 beside weights and results: of 40 and 50 MB, half of which is
near a multiprocessor."""

MULTIPROCESSORS = {80: 108, 90: 132}
SPLIT_TOKENS = 2048
"""Tokens up to which rows are cut: beyond, partial sums would drive the inputs out of L2."""


class BlockConfig(NamedTuple):
    """Tiles and schedule of one launch; outputs and inputs of a tile are the weight's.

    Attributes:
        block_m: tokens of a tile; a power of two from 16 on.
        parts: whether long rows are cut (``BlockTiles.parts``).
        num_warps: warps of a program.
        num_stages: tiles of inputs in flight.
        group_m: blocks of tokens that go through the weight together, for reuse in L2.
    """

    block_m: int
    parts: bool = False
    num_warps: int = 4
    num_stages: int = 3
    group_m: int = 8


def workspace_needs(weight: BlockTiles, tokens: int, config: BlockConfig) -> tuple[int, int]:
    """Elements of ``Workspace.partials`` and of ``Workspace.counters``."""
    if not config.parts:
        return 0, 0
    blocks = row_blocks(tokens, config)
    return weight.slots * blocks * config.block_m * weight.rows, weight.counters * blocks


def row_blocks(tokens: int, config: BlockConfig) -> int:
    """Elements of ``Target.counters`` that a dynamic scheme needs."""
    return -(-tokens // config.block_m)


def default_config(weight: BlockTiles, tokens: int, capability: int) -> BlockConfig:
    """A good configuration where nothing was measured.

    Args:
        weight: the layer.
        tokens: rows.
        capability: 80 for sm_80; another takes the nearest below that is known.
    """
    capability = 90 if capability >= 90 else 80
    processors = MULTIPROCESSORS[capability]
    block_m = _block_m(weight, tokens, processors)
    blocks = -(-tokens // block_m)
    steps = len(weight.tiles)
    # Rows are cut where the longest takes longer than its share of the whole GPU.
    fair = max(SHORTEST_PART, steps * blocks / processors)
    mean = steps / max(1, len(weight.whole))
    stage = (block_m + weight.rows) * weight.step * weight.tiles.element_size()
    wanted = 4 if mean > 6 or block_m < 64 else 3 if mean > 2 else 2
    fitting = max(2, min(wanted, SHARED_OF_TWO[capability] // stage))
    group = GROUP_BYTES[capability] // (weight.in_features * weight.tiles.element_size() * block_m)
    return BlockConfig(
        block_m,
        weight.slots > 0 and tokens <= SPLIT_TOKENS and weight.longest > fair,
        # 32 sums a thread leave registers for two programs, or more, and their epilogues.
        8 if block_m * weight.rows >= 8192 else 4,
        # wgmma reads a stage while the next is loaded; mma.sync takes it to registers first, and
        # Triton keeps one buffer less than there are stages.
        fitting + (capability == 80),
        max(1, group),
    )


def _block_m(weight: BlockTiles, tokens: int, processors: int) -> int:
    for block_m in (16, 32, 64):
        if tokens <= block_m:
            return block_m
    if weight.tiles.dtype == torch.float32:
        return 64  # no matrix units: operands come from shared memory value by value
    if weight.rows == 128 and len(weight.tiles) <= 4 * len(weight.whole):
        return 64  # short rows: more programs at a time count for more than bytes
    programs = -(-tokens // 128) * len(weight.whole)
    return 128 if programs >= 2 * processors else 64


def candidate_configs(weight: BlockTiles, tokens: int, capability: int) -> list[BlockConfig]:
    """What is worth measuring for a layer and a number of tokens, the default first."""
    default = default_config(weight, tokens, capability)
    changes: list[dict[str, int]] = [{}, {"num_stages": default.num_stages + 1}]
    if weight.slots:
        changes.append({"parts": not default.parts})
    if default.block_m >= 64:
        small = default.block_m == 64
        changes.append({"block_m": 128 if small else 64, "num_warps": 8 if small else 4})
        if weight.rows <= 64 and weight.tiles.dtype != torch.float32:
            changes += [{"block_m": 256, "num_warps": 8}, {"block_m": 256, "num_warps": 16}]
    limit = 2 * SHARED_OF_TWO[90 if capability >= 90 else 80]
    configs = [default._replace(**change) for change in changes]
    stage = weight.step * weight.tiles.element_size()
    return [c for c in configs if c.num_stages * (c.block_m + weight.rows) * stage <= limit]
