"""N:M weights, read from their packed bytes (docs/formats/nm.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..bits import read_fields, read_nibbles
from .exact_split import Remainder


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


def exact_linear(x: Tensor, two_of_four: Tensor, remainder: Remainder) -> Tensor:
    """``x @ two_of_four.T + x @ remainder.T``: for integers, the product of the whole matrix.

    Args:
        x: [tokens, in]; int8 products are summed in int32 (as int64, then narrowed).
        two_of_four: [out, in], of :func:`~.exact_split.split`.
        remainder: its second part.

    Returns:
        [tokens, out]: int32 where both are int8, else of their type.
    """
    rest = remainder.matrix(two_of_four.shape[1])
    if two_of_four.dtype != torch.int8:
        return x @ two_of_four.T + x @ rest.T
    x = x.long()
    return (x @ two_of_four.long().T).int() + (x @ rest.long().T).int()
