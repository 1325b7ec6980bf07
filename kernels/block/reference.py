"""Block weights, read from their packed bytes (docs/formats/block.md)."""

from __future__ import annotations

from torch import Tensor

from ..bits import read_bits, read_nibbles


def read_weight(
    values: Tensor,
    bitmask: Tensor,
    shape: tuple[int, int],
    block: tuple[int, int],
    int4: bool,
) -> Tensor:
    """Blocks [blocks, R * C] on a bitmask over the grid -> matrix [out, in]."""
    (rows, cols), (r, c) = shape, block
    grid_rows, grid_cols = -(-rows // r), -(-cols // c)
    if int4:
        values = read_nibbles(values, r * c)
    mask = read_bits(bitmask, grid_cols).unsqueeze(-1).expand(-1, -1, r * c)
    blocks = values.new_zeros(grid_rows, grid_cols, r * c).masked_scatter(mask, values)
    weight = blocks.view(grid_rows, grid_cols, r, c).transpose(1, 2)
    return weight.reshape(grid_rows * r, grid_cols * c)[:rows, :cols]
