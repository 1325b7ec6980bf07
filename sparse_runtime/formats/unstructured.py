"""Unstructured: one bit per position, then the nonzero values in row-major order.

    bitmask [out, ceil(in / 8)] uint8    bit i % 8 of byte i // 8 of a row: is w[row, i] nonzero?

              byte 0                    byte 1
        bit   7 6 5 4 3 2 1 0           ...
        input 7 6 5 4 3 2 1 0           15 .. 8

    values  [nnz]                        fp32, bf16, fp16, int8
            [ceil(nnz / 2)] uint8        int4

See docs/formats/unstructured.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ..spec import LinearSpec
from .base import (
    PackedWeight,
    check_nibble_padding,
    check_tensor,
    decode_values,
    encode_values,
    stored_shape,
)
from .bits import has_padding_bits, pack_bits, unpack_bits


@dataclass(frozen=True, eq=False, kw_only=True)
class UnstructuredWeight(PackedWeight):
    """A bitmask over all positions and the nonzero values."""

    INDEX: ClassVar[tuple[str, ...]] = ("bitmask",)

    bitmask: Tensor

    @classmethod
    def pack(cls, weight: Tensor, spec: LinearSpec, scales: Tensor | None = None) -> Self:
        mask = weight != 0
        values = encode_values(weight[mask], spec)
        return cls(spec=spec, values=values, bitmask=pack_bits(mask), scales=scales)

    def mask(self) -> Tensor:
        """Bool [out, in]: where a value is stored."""
        return unpack_bits(self.bitmask, self.spec.shape[1])

    def unpack(self) -> Tensor:
        mask = self.mask()
        values = decode_values(self.values, self.spec, int(mask.sum()))
        weight = torch.zeros(self.spec.shape, dtype=values.dtype, device=values.device)
        weight[mask] = values
        return weight

    def _expected(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        rows, cols = self.spec.shape
        bitmask = (torch.uint8, (rows, -(-cols // 8)))
        check_tensor("bitmask", self.bitmask, *bitmask)  # its bits give the shape of the values
        if has_padding_bits(self.bitmask, cols):
            raise ValueError(f"bitmask: a bit behind input {cols - 1} is set, expected 0")
        return {"bitmask": bitmask, "values": stored_shape(self.spec, int(self.mask().sum()))}

    def _check_content(self) -> None:
        count = int(self.mask().sum())
        check_nibble_padding(self.values, self.spec, count)
        if bool((decode_values(self.values, self.spec, count) == 0).any()):
            raise ValueError("values: a stored value is 0, expected nonzero values only")
