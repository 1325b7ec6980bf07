"""Dense weights, read from their packed bytes (docs/formats/dense.md)."""

from __future__ import annotations

from torch import Tensor

from ..bits import read_nibbles


def read_weight(values: Tensor, shape: tuple[int, int], int4: bool) -> Tensor:
    """Stored values -> matrix [out, in] of the stored type (int8 for int4)."""
    return read_nibbles(values, shape[1]) if int4 else values
