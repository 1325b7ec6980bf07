"""Block weights as the GPU's tiles: each row's blocks side by side, without the gaps between them.

docs/kernels/triton_block.md has the bytes. No Triton here: packing needs none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..bits import read_bits
from .schedule import TileRow, parts_of_rows, whole_rows

LOWEST_BLOCK = 16
"""Rows of the lowest block that this kernel multiplies, the least outputs of a matrix instruction's
tile on sm_80 and sm_90 as Triton lays them out."""

HIGHEST_TILE = 128
NO_INPUT = 1 << 30
"""Where a run of padding would start: behind every input, a multiple of every run's length."""


class BlockTiles(NamedTuple):
    """A block-sparse matrix [out, in] in tiles of ``rows`` outputs by ``step`` inputs.

    Attributes:
        tiles: [steps, rows, step], the stored dtype; the tiles of a row of blocks in a row.
        starts: int32 [steps, step // run], the first input of each run of consecutive inputs.
        whole: int32 [tile rows, ITEM_FIELDS], an item a row (schedule.py).
        parts: int32 [items, ITEM_FIELDS], long rows cut.
        slots: partial sums of a tile of tokens that ``parts`` needs.
        counters: counters of a tile of tokens that ``parts`` needs.
        longest: steps of the longest row.
        out_features: of the matrix.
        in_features: of the matrix.
        block_rows: R.
        block_cols: C.
        stored: blocks.
    """

    tiles: Tensor
    starts: Tensor
    whole: Tensor
    parts: Tensor
    slots: int
    counters: int
    longest: int
    out_features: int
    in_features: int
    block_rows: int
    block_cols: int
    stored: int

    @property
    def rows(self) -> int:
        """Outputs of a tile: a power of two from 16 to 128."""
        return self.tiles.shape[1]

    @property
    def step(self) -> int:
        """Inputs of a tile."""
        return self.tiles.shape[2]

    @property
    def stored_percent(self) -> int:
        """Of a hundred blocks, those that are stored, to the nearest five."""
        grid = -(-self.out_features // self.block_rows) * -(-self.in_features // self.block_cols)
        return 5 * round(20 * self.stored / max(1, grid))

    @property
    def run(self) -> int:
        """Consecutive inputs behind each of ``starts``."""
        return self.step // self.starts.shape[1]


def why_not(block_rows: int, zero_points: bool = False) -> str | None:
    """Why a block weight is not for this kernel; None where it is.

    Args:
        block_rows: R.
        zero_points: whether the weight has zero points.
    """
    if block_rows < LOWEST_BLOCK:
        return (
            f"blocks of {block_rows} rows: a tile of the matrix units has {LOWEST_BLOCK} outputs, "
            "which would be mostly padding, and every row of blocks would read its inputs for "
            "itself; the unstructured and the dense kernel hold such weights"
        )
    if zero_points:
        return (
            "weights with zero points: their products need the sum of all of a token's inputs, and "
            "the block kernel reads those of stored blocks; the dense kernel holds such weights"
        )
    return None


def default_step(dtype: torch.dtype, block_cols: int) -> int:
    """Inputs of a tile: 128 bytes, a line of the caches and a row of swizzled shared memory.

    int8 takes 64 inputs where blocks are narrower than 128: a row's last tile is padded, and rows
    are short (90 % of 768 inputs leaves 77).
    """
    if dtype == torch.float32:
        return 32
    return 128 if dtype == torch.int8 and block_cols % 128 == 0 else 64


def pack(
    blocks: Tensor,
    bitmask: Tensor,
    shape: tuple[int, int],
    block: tuple[int, int],
    step: int | None = None,
) -> BlockTiles:
    """Lay out stored blocks for the kernel, on their device.

    Args:
        blocks: int8, bfloat16, float16 or float32 [count, R * C], in row-major order of the grid
            (docs/formats/block.md; int4 expanded).
        bitmask: uint8 [ceil(out / R), ceil(ceil(in / C) / 8)].
        shape: (out, in).
        block: (R, C), R at least 16.
        step: inputs of a tile, a power of two from 16; None chooses.

    Raises:
        ValueError: R is below 16.
    """
    (out_features, in_features), (r, c) = shape, block
    if reason := why_not(r):
        raise ValueError(reason)
    step = default_step(blocks.dtype, c) if step is None else step
    run = min(c & -c, step)
    mask = read_bits(bitmask, -(-in_features // c))
    heights = [min(HIGHEST_TILE, r - at) for at in range(0, r, HIGHEST_TILE)]
    tile_height = max(LOWEST_BLOCK, 1 << (heights[0] - 1).bit_length())

    steps_of_row = -(-(mask.sum(1) * c) // step)
    first_step = steps_of_row.cumsum(0) - steps_of_row
    steps = int(steps_of_row.sum())
    row, col = mask.nonzero(as_tuple=True)
    at = first_step[row] * step + (mask.long().cumsum(1)[row, col] - 1) * c  # of each block

    wide = blocks.new_zeros(len(heights) * tile_height, steps * step)
    places = (at.unsqueeze(1) + torch.arange(c, device=at.device)).flatten()
    wide[:r, places] = blocks.view(-1, r, c).transpose(0, 1).reshape(r, -1)
    tiles = wide.view(len(heights), tile_height, steps, step).transpose(1, 2).contiguous()

    starts = torch.full((steps * step // run,), NO_INPUT, dtype=torch.int32, device=at.device)
    runs = torch.arange(c // run, device=at.device)
    starts[(at.unsqueeze(1) // run + runs).flatten()] = (
        (col.unsqueeze(1) * c + runs * run).flatten().int()
    )
    rows = [
        TileRow(
            output, min(height, out_features - output), first + part * steps, end + part * steps
        )
        for part, height in enumerate(heights)
        for output, first, end in zip(
            range(part * HIGHEST_TILE, out_features, r),
            first_step.tolist(),
            (first_step + steps_of_row).tolist(),
            strict=False,
        )
    ]
    parts, slots, counters = parts_of_rows(rows)
    return BlockTiles(
        tiles=tiles.view(len(heights) * steps, tile_height, step),
        starts=starts.view(steps, step // run).repeat(len(heights), 1),
        whole=whole_rows(rows).to(at.device),
        parts=parts.to(at.device),
        slots=slots,
        counters=counters,
        longest=int(steps_of_row.max()) if len(rows) else 0,
        out_features=out_features,
        in_features=in_features,
        block_rows=r,
        block_cols=c,
        stored=len(blocks),
    )


def unpack(weight: BlockTiles) -> Tensor:
    """The matrix [out, in] of :func:`pack`, bit for bit, from what the kernel reads."""
    steps, rows, step = weight.tiles.shape
    device = weight.tiles.device
    within = torch.arange(weight.run, device=device)
    inputs = (weight.starts.unsqueeze(2) + within).view(steps, 1, step).expand(-1, rows, -1)
    outputs = torch.full((steps, rows), weight.out_features, device=device)
    for output, height, first, end, *_ in weight.whole.tolist():
        outputs[first:end, :height] = torch.arange(output, output + height, device=device)
    outputs = outputs.unsqueeze(2).expand(-1, -1, step)
    inside = (outputs < weight.out_features) & (inputs < weight.in_features)
    matrix = weight.tiles.new_zeros(weight.out_features, weight.in_features)
    matrix[outputs[inside], inputs[inside].long()] = weight.tiles[inside]
    return matrix
