"""N:M weights, read from their packed bytes (docs/formats/nm.md)."""

from __future__ import annotations

from torch import Tensor

from ..bits import read_fields, read_nibbles


def read_weight(
    values: Tensor, positions: Tensor, shape: tuple[int, int], n: int, m: int, int4: bool
) -> Tensor:
    """Values [out, groups * N] at their positions in groups of M inputs -> matrix [out, in]."""
    rows, cols = shape
    groups = -(-cols // m)
    if int4:
        values = read_nibbles(values, groups * n)
    position = read_fields(positions, groups * n, (m - 1).bit_length()).unflatten(1, (groups, n))
    weight = values.new_zeros(rows, groups, m)
    weight = weight.scatter(-1, position, values.unflatten(1, (groups, n)))
    return weight.flatten(1)[:, :cols]
