"""pack-quantized: several integers in an int32.

Source: compressed-tensors, compressors/pack_quantized/helpers.py. ``value + 2**(bits - 1)``, the
first value in the lowest bits, rows padded to whole int32.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (4, 8)
"""Widths of which no value lies across two int32, about which versions differ."""


def words(count: int, bits: int) -> int:
    """int32 that ``count`` values take."""
    return -(-count * bits // 32)


def unpack_int32(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo the packing along the last dimension.

    Args:
        packed: int32 [rows, words(count, bits)].
        bits: 4 or 8.
        count: values in a row.

    Returns:
        int8 [rows, count].
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return (values.flatten(1)[:, :count] - 2 ** (bits - 1)).to(torch.int8)
