"""Bits and nibbles: the byte order every packed tensor shares (docs/formats/README.md).

Bit ``i`` of a row is bit ``i % 8`` (least significant first) of byte ``i // 8``; every row starts
on a byte boundary and its unused high bits are zero. int4 values follow the same rule: the even
element is the low nibble, the odd one the high nibble, two's complement.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """Bool [rows, n] -> uint8 [rows, ceil(n / 8)], least significant bit first."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1, bitorder="little"))


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """uint8 [rows, ceil(count / 8)] -> bool [rows, count]."""
    bits = np.unpackbits(packed.cpu().numpy(), axis=1, count=count, bitorder="little")
    return torch.from_numpy(bits.astype(bool)).to(packed.device)


def has_padding_bits(packed: Tensor, count: int) -> bool:
    """Whether any bit behind the first ``count`` of a row is set."""
    used = count % 8
    return bool(used and packed.numel() and (packed[:, -1] >> used).any())


def pack_fields(fields: Tensor, width: int) -> Tensor:
    """Integers [rows, n] below 2**width -> uint8 [rows, ceil(n * width / 8)]."""
    shifts = torch.arange(width, dtype=torch.uint8)
    bits = (fields.cpu().to(torch.uint8).unsqueeze(-1) >> shifts) & 1
    return pack_bits(bits.flatten(1).bool())


def unpack_fields(packed: Tensor, count: int, width: int) -> Tensor:
    """uint8 [rows, ceil(count * width / 8)] -> uint8 [rows, count], for width up to 8."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    if 8 % width == 0:  # no field crosses a byte
        return ((packed.unsqueeze(-1) >> shifts) & (2**width - 1)).flatten(1)[:, :count]
    bits = unpack_bits(packed, count * width).view(packed.shape[0], count, width)
    shifts = torch.arange(width, dtype=torch.uint8, device=packed.device)
    return (bits.to(torch.uint8) << shifts).sum(-1, dtype=torch.uint8)


def pack_nibbles(values: Tensor) -> Tensor:
    """int8 [..., n] in -8..7 -> uint8 [..., ceil(n / 2)]; an odd last high nibble is zero."""
    nibbles = (values.to(torch.int16) & 0xF).to(torch.uint8)
    if nibbles.shape[-1] % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1))
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """uint8 [..., ceil(count / 2)] -> int8 [..., count]."""
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)[..., :count]
    # Two's complement without branches: 0..7 stay, 8..15 become -8..-1.
    return ((nibbles.to(torch.int8) ^ 8) - 8).contiguous()
