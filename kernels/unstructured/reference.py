"""Unstructured weights, read from their packed bytes (docs/formats/unstructured.md)."""

from __future__ import annotations

from torch import Tensor

from ..bits import read_bits, read_nibbles


def read_weight(values: Tensor, bitmask: Tensor, shape: tuple[int, int], int4: bool) -> Tensor:
    """Values [nnz] behind a bitmask [out, ceil(in / 8)] -> matrix [out, in]."""
    if int4:
        values = read_nibbles(values, 2 * values.shape[0])
    # The k-th set bit takes the k-th value; a spare last nibble is never reached.
    return values.new_zeros(shape).masked_scatter(read_bits(bitmask, shape[1]), values)
