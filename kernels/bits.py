"""Reading packed bits with tensor operations alone, so that references trace and run anywhere.

Written from docs/formats and independent of the packers, which it therefore checks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def read_bits(packed: Tensor, count: int) -> Tensor:
    """uint8 [rows, bytes] -> Bool [rows, count]; bit i is bit i % 8 of byte i // 8."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :count].bool()


def read_fields(packed: Tensor, count: int, width: int) -> Tensor:
    """uint8 [rows, bytes] -> int64 [rows, count]; field i is bits i * width and up."""
    bits = read_bits(packed, count * width).unflatten(1, (count, width)).long()
    return (bits << torch.arange(width, device=packed.device)).sum(-1)


def read_nibbles(packed: Tensor, count: int) -> Tensor:
    """uint8 [..., bytes] -> int8 [..., count]; even elements in the low nibble, signed."""
    low, high = (packed & 15).to(torch.int8), (packed >> 4).to(torch.int8)
    nibbles = torch.stack((low, high), dim=-1).flatten(-2)[..., :count]
    return torch.where(nibbles >= 8, nibbles - 16, nibbles)
