"""Block: a grid of R x C blocks (R outputs by C inputs), one bit per block, then the blocks.

    grid    block_rows = ceil(out / R), block_cols = ceil(in / C); edges are padded with zeros
    bitmask [block_rows, ceil(block_cols / 8)] uint8   bit order as in the unstructured format
    values  [blocks, R * C]              kept blocks in row-major order of the grid, each row-major
            [blocks, ceil(R * C / 2)] uint8            int4

A block is stored when any of its values is nonzero. See docs/formats/block.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import Self

from ..spec import LinearSpec, Structure
from .base import (
    PackedWeight,
    check_nibble_padding,
    check_tensor,
    decode_values,
    encode_values,
    stored_shape,
)
from .bits import has_padding_bits, pack_bits, unpack_bits


def to_blocks(weight: Tensor, structure: Structure) -> Tensor:
    """[out, in] -> [block_rows, block_cols, R * C], zero padded at the edges."""
    (rows, cols), (r, c) = weight.shape, (structure.rows, structure.cols)
    grid = pad(weight, (0, -cols % c, 0, -rows % r))
    grid = grid.view(grid.shape[0] // r, r, grid.shape[1] // c, c)
    return grid.transpose(1, 2).flatten(2)


def from_blocks(blocks: Tensor, structure: Structure, shape: tuple[int, int]) -> Tensor:
    """Undo :func:`to_blocks`, cutting the padding."""
    block_rows, block_cols = blocks.shape[:2]
    grid = blocks.view(block_rows, block_cols, structure.rows, structure.cols).transpose(1, 2)
    weight = grid.reshape(block_rows * structure.rows, block_cols * structure.cols)
    return weight[: shape[0], : shape[1]].contiguous()


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockWeight(PackedWeight):
    """A bitmask over the grid of blocks and the blocks that are not all zero."""

    INDEX: ClassVar[tuple[str, ...]] = ("bitmask",)

    bitmask: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """(block_rows, block_cols)."""
        structure, (rows, cols) = self.spec.structure, self.spec.shape
        return -(-rows // structure.rows), -(-cols // structure.cols)

    @classmethod
    def pack(cls, weight: Tensor, spec: LinearSpec, scales: Tensor | None = None) -> Self:
        blocks = to_blocks(weight, spec.structure)
        mask = (blocks != 0).any(-1)
        values = encode_values(blocks[mask], spec)
        return cls(spec=spec, values=values, bitmask=pack_bits(mask), scales=scales)

    def mask(self) -> Tensor:
        """Bool [block_rows, block_cols]: which blocks are stored."""
        return unpack_bits(self.bitmask, self.grid[1])

    def _blocks(self) -> Tensor:
        """The grid with its empty blocks, [block_rows, block_cols, R * C]."""
        size = self.spec.structure.rows * self.spec.structure.cols
        values = decode_values(self.values, self.spec, size)
        blocks = values.new_zeros(*self.grid, size)
        blocks[self.mask()] = values
        return blocks

    def unpack(self) -> Tensor:
        return from_blocks(self._blocks(), self.spec.structure, self.spec.shape)

    def _expected(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        block_rows, block_cols = self.grid
        bitmask = (torch.uint8, (block_rows, -(-block_cols // 8)))
        check_tensor("bitmask", self.bitmask, *bitmask)  # its bits give the shape of the values
        if has_padding_bits(self.bitmask, block_cols):
            raise ValueError(f"bitmask: a bit behind block column {block_cols - 1} is set")
        size = self.spec.structure.rows * self.spec.structure.cols
        count = int(self.mask().sum())
        return {"bitmask": bitmask, "values": stored_shape(self.spec, count, size)}

    def _check_content(self) -> None:
        size = self.spec.structure.rows * self.spec.structure.cols
        check_nibble_padding(self.values, self.spec, size)
        values = decode_values(self.values, self.spec, size)
        if bool((values == 0).all(-1).any()):
            raise ValueError("values: a stored block is all zero, expected it to be left out")
        if bool(((values != 0) & self._outside()).any()):
            raise ValueError("values: a value in the padding of an edge block is not 0")

    def _outside(self) -> Tensor:
        """Bool [blocks, R * C]: which stored values lie behind the matrix' edges."""
        structure, (rows, cols) = self.spec.structure, self.spec.shape
        block_row, block_col = self.mask().nonzero(as_tuple=True)
        device = self.bitmask.device
        row = block_row.unsqueeze(1) * structure.rows + torch.arange(structure.rows, device=device)
        col = block_col.unsqueeze(1) * structure.cols + torch.arange(structure.cols, device=device)
        return ((row >= rows).unsqueeze(2) | (col >= cols).unsqueeze(1)).flatten(1)
