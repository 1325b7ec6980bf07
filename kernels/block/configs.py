"""How a block-sparse linear layer is cut into programs, and what memory that takes.

Shipped configurations (../defaults.py) are for square blocks of which a tenth is stored; others
follow from counting bytes (docs/kernels/triton_block.md). All are of a closed set, ``offered``, so
that every one is compiled ahead of time (cases.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product as pairs
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..defaults import MULTIPROCESSORS, PRODUCTS, SIZES, Key, Table, rounded
from .layout import BlockTiles, default_step
from .schedule import PROGRAMS_WANTED, SHORTEST_PART

SHARED_OF_TWO = {80: 80 * 1024, 90: 112 * 1024}
"""Bytes of shared memory that leave room for a second program on a multiprocessor."""

GROUP_BYTES = {80: 8 << 20, 90: 16 << 20}
"""Bytes of input that may stay in L2 beside weights and results: of 40 and 50 MB, half of which is
near a multiprocessor."""

MOST_SUMS = 64
"""Sums of a thread: with more, two programs do not fit the registers."""

SPLIT_TOKENS = 2048
"""Tokens up to which rows are cut: beyond, partial sums would drive the inputs out of L2."""


SQUARES = (16, 32, 64, 128)
STORED = 10
"""Of a hundred blocks, those that are stored where the table holds."""

PERCENTS = (2, 5, 10, 20, 30, 50, 100)
"""Shares at which the rule says what is offered."""


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


class Shape(NamedTuple):
    """What the rule looks at in a layer.

    Attributes:
        product: "int8", "half" (bf16, fp16) or "fp32".
        rows: outputs of a tile.
        step: inputs of a tile.
        tile_rows: rows of tiles.
        steps: of all of them.
        longest: steps of the longest row.
        cut: whether there are parts of rows to be had.
        in_features: inputs of the matrix.
    """

    product: str
    rows: int
    step: int
    tile_rows: int
    steps: int
    longest: int
    cut: bool
    in_features: int

    @property
    def step_bytes(self) -> int:
        """Bytes of a row of a tile."""
        return self.step * DTYPES[self.product].itemsize


DTYPES = {"int8": torch.int8, "half": torch.bfloat16, "fp32": torch.float32}


def shape_of(weight: BlockTiles) -> Shape:
    """What the rule looks at in a packed layer."""
    dtype = weight.tiles.dtype
    return Shape(
        "half" if dtype.itemsize == 2 else "int8" if dtype == torch.int8 else "fp32",
        weight.rows,
        weight.step,
        len(weight.whole),
        len(weight.tiles),
        weight.longest,
        weight.slots > 0,
        weight.in_features,
    )


def even_shape(
    product: str, block: int, percent: int, out_features: int, in_features: int
) -> Shape:
    """Of a layer with so many of each hundred square blocks, in rows of equal length."""
    step = default_step(DTYPES[product], block)
    rows = -(-out_features // block)
    longest = -(-max(1, round(percent * in_features / (100 * block))) * block // step)
    cut = longest > max(SHORTEST_PART, -(-rows * longest // PROGRAMS_WANTED))
    return Shape(product, block, step, rows, rows * longest, longest, cut, in_features)


def predicted(shape: Shape, tokens: int, capability: int) -> BlockConfig:
    """By the rule, a good configuration.

    Args:
        shape: of the layer.
        tokens: rows.
        capability: one of ``TABLED``.
    """
    block_m = _block_m(shape, tokens, capability)
    mean = shape.steps / max(1, shape.tile_rows)
    stage = (block_m + shape.rows) * shape.step_bytes
    wanted = 4 if mean > 6 or block_m < 64 else 3 if mean > 2 else 2
    fitting = max(2, min(wanted, SHARED_OF_TWO[capability] // stage))
    group = GROUP_BYTES[capability] // (
        shape.in_features * DTYPES[shape.product].itemsize * block_m
    )
    return BlockConfig(
        block_m,
        _cuts(shape, tokens, block_m, capability),
        _warps(shape, block_m),
        # wgmma reads a stage while the next is loaded; mma.sync takes it to registers first, and
        # Triton keeps one buffer less than there are stages.
        fitting + (capability == 80),
        max(1, group),
    )


def _cuts(shape: Shape, tokens: int, block_m: int, capability: int) -> bool:
    """Whether the longest row takes longer than its share of the whole GPU."""
    steps = shape.steps * -(-tokens // block_m)
    fair = max(SHORTEST_PART, steps / MULTIPROCESSORS[capability])
    return shape.cut and tokens <= SPLIT_TOKENS and shape.longest > fair


def _warps(shape: Shape, block_m: int) -> int:
    # 32 sums a thread, 64 at most, leave registers for two programs; products of float32 need more.
    sums = 4096 if shape.product == "fp32" else 8192
    return 8 if block_m * shape.rows >= sums else 4


def _block_m(shape: Shape, tokens: int, capability: int) -> int:
    for block_m in (16, 32, 64):
        if tokens <= block_m:
            return block_m
    if shape.product == "fp32":
        return 64  # no matrix units: operands come from shared memory value by value
    # A higher tile reads its weights for more tokens, and leaves fewer programs to go round: three
    # times the programs that run at once, or one time at least. The highest is for wgmma, whose
    # operands take no registers: two programs fit.
    rows, processors = shape.tile_rows, MULTIPROCESSORS[capability]
    if capability >= 90 and shape.rows == 64 and -(-tokens // 256) * rows >= 6 * processors:
        return 256
    return 128 if -(-tokens // 128) * rows >= 2 * processors else 64


def _candidates(shape: Shape, tokens: int, default: BlockConfig, capability: int) -> list[Any]:
    """What is worth measuring, the default first."""
    changes: list[dict[str, Any]] = [{}, {"num_stages": default.num_stages + 1}]
    if shape.cut:
        changes.append({"parts": not default.parts})
    if default.block_m >= 64 and shape.product != "fp32":
        changes += [
            {"block_m": 64, "num_warps": 4},
            {"block_m": 128, "num_warps": 4},
            {"block_m": 128, "num_warps": 8},
        ]
        if capability >= 90:
            changes.append({"block_m": 256, "num_warps": 8 if shape.rows < 128 else 16})
    limit = 2 * SHARED_OF_TWO[capability]
    configs = dict.fromkeys(default._replace(**change) for change in changes)
    return [
        c
        for c in configs
        if c.num_stages * (c.block_m + shape.rows) * shape.step_bytes <= limit
        and c.block_m * shape.rows <= MOST_SUMS * 32 * c.num_warps
    ]


def predict(capability: int) -> Iterator[tuple[Key, BlockConfig]]:
    """The rule's best for every entry of the table."""
    for product, block, (tokens, *sizes) in pairs(PRODUCTS, SQUARES, SIZES):
        shape = even_shape(product, block, STORED, *sizes)
        key = (product, f"{block}x{block}", STORED, tokens, *sizes)
        yield key, predicted(shape, tokens, capability)


TABLE = Table(
    "block",
    Path(__file__).parent / "tuned",
    ("product", "block", "stored_percent", "tokens", "out", "in"),
    BlockConfig,
    predict,
)


@cache
def offered(product: str, rows: int, capability: int) -> frozenset[BlockConfig]:
    """Every configuration that may run, ``group_m`` aside, of which no compilation depends.

    Args:
        product: "int8", "half" (bf16, fp16) or "fp32".
        rows: outputs of a tile.
        capability: one of ``TABLED``.
    """
    square, found = f"{rows}x{rows}", set()
    for (name, block, *_), config in TABLE.read(capability).items():
        if (name, block) == (product, square):
            found.add(config._replace(group_m=0))
    for percent, (tokens, *sizes) in pairs(PERCENTS, SIZES):
        shape = even_shape(product, rows, percent, *sizes)
        default = predicted(shape, tokens, capability)
        for config in _candidates(shape, tokens, default, capability):
            found.add(config._replace(group_m=0))
    return frozenset(found)


def choices(weight: BlockTiles, tokens: int, capability: int) -> list[BlockConfig]:
    """What is worth measuring for a layer and a number of tokens, the default first.

    Args:
        weight: the layer.
        tokens: rows.
        capability: 80 for sm_80; another takes the nearest below that is known.
    """
    capability, shape = 90 if capability >= 90 else 80, shape_of(weight)
    default = predicted(shape, tokens, capability)
    block = f"{weight.block_rows}x{weight.block_cols}"
    sizes = (rounded(tokens), weight.out_features, weight.in_features)
    tabled = TABLE.get((shape.product, block, weight.stored_percent, *sizes), capability)
    if tabled is not None:  # whether rows are cut depends on this layer's longest
        default = tabled._replace(parts=_cuts(shape, tokens, tabled.block_m, capability))
    known = offered(shape.product, shape.rows, capability)
    configs = _candidates(shape, tokens, default, capability)
    return list(dict.fromkeys(_nearest(config, known) for config in configs))


def default_config(weight: BlockTiles, tokens: int, capability: int) -> BlockConfig:
    """The first of :func:`choices`."""
    return choices(weight, tokens, capability)[0]


def _nearest(config: BlockConfig, known: frozenset[BlockConfig]) -> BlockConfig:
    """Of those that are offered, the one with this tile: as many stages, else fewer."""

    def distance(other: BlockConfig) -> tuple[bool, bool, int]:
        more = other.num_stages > config.num_stages
        return other.parts != config.parts, more, abs(other.num_stages - config.num_stages)

    tile = (config.block_m, config.num_warps)
    same = [other for other in known if (other.block_m, other.num_warps) == tile]
    return min(same, key=distance)._replace(group_m=config.group_m)
