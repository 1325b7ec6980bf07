"""N:M: each group of M consecutive inputs keeps N values and their positions.

    groups    G = ceil(in / M); a short last group is padded with zeros
    values    [out, G * N]               group by group, positions ascending (int4: nibbles)
    positions [out, ceil(G * N * b / 8)] uint8; b = ceil(log2(M)) bits a position

        2:4, b = 2, one byte holds two groups
        bit        7 6 | 5 4 | 3 2 | 1 0
        position   g1 second | g1 first | g0 second | g0 first

A group with fewer than N nonzeros keeps zeros at the lowest positions that are free.
See docs/formats/nm.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import Self

from ..spec import LinearSpec
from .base import PackedWeight, check_nibble_padding, decode_values, encode_values, stored_shape
from .bits import has_padding_bits, pack_fields, unpack_fields


def position_bits(m: int) -> int:
    """Bits of one position in a group of ``m``."""
    return (m - 1).bit_length()


@dataclass(frozen=True, eq=False, kw_only=True)
class NMWeight(PackedWeight):
    """N values and N positions for each group of M inputs."""

    INDEX: ClassVar[tuple[str, ...]] = ("positions",)

    positions: Tensor

    @property
    def groups(self) -> int:
        """Groups in a row."""
        return -(-self.spec.shape[1] // self.spec.structure.m)

    @classmethod
    def pack(cls, weight: Tensor, spec: LinearSpec, scales: Tensor | None = None) -> Self:
        n, m = spec.structure.n, spec.structure.m
        rows, cols = weight.shape
        grouped = pad(weight, (0, -cols % m)).view(rows, -1, m)
        nonzero = grouped != 0
        if bool((nonzero.sum(-1) > n).any()):
            row, group = (int(i) for i in (nonzero.sum(-1) > n).nonzero()[0])
            raise ValueError(
                f"weight[{row}, {group * m}:{group * m + m}] has more than {n} nonzeros, so the "
                f"matrix is not {n}:{m}; prune it first (formats.project)"
            )
        # A stable sort puts the nonzeros first and then the lowest free positions.
        kept = (~nonzero).to(torch.uint8).argsort(dim=-1, stable=True)[..., :n].sort(-1).values
        values = grouped.gather(-1, kept).flatten(1)
        positions = pack_fields(kept.flatten(1), position_bits(m))
        return cls(
            spec=spec, values=encode_values(values, spec), positions=positions, scales=scales
        )

    def kept(self) -> Tensor:
        """int64 [out, groups, N]: the position of each value in its group."""
        return self._fields().long()

    def _fields(self) -> Tensor:
        """uint8 [out, groups, N]: :meth:`kept` in an eighth of the memory."""
        n, m = self.spec.structure.n, self.spec.structure.m
        fields = unpack_fields(self.positions, self.groups * n, position_bits(m))
        return fields.reshape(self.spec.shape[0], self.groups, n)

    def _grouped_values(self) -> Tensor:
        count = self.groups * self.spec.structure.n
        values = decode_values(self.values, self.spec, count)
        return values.view(self.spec.shape[0], self.groups, self.spec.structure.n)

    def unpack(self) -> Tensor:
        rows, cols = self.spec.shape
        values = self._grouped_values()
        weight = values.new_zeros(rows, self.groups, self.spec.structure.m)
        return weight.scatter_(-1, self.kept(), values).flatten(1)[:, :cols].contiguous()

    def _expected(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        rows, count = self.spec.shape[0], self.groups * self.spec.structure.n
        width = position_bits(self.spec.structure.m)
        return {
            "values": stored_shape(self.spec, rows, count),
            "positions": (torch.uint8, (rows, -(-count * width // 8))),
        }

    def _check_content(self) -> None:
        n, m = self.spec.structure.n, self.spec.structure.m
        cols, count = self.spec.shape[1], self.groups * n
        check_nibble_padding(self.values, self.spec, count)
        if has_padding_bits(self.positions, count * position_bits(m)):
            raise ValueError("positions: a bit behind the last position is set, expected 0")
        kept, values = self._fields(), self._grouped_values()
        if bool((kept >= m).any()) or bool((kept[..., 1:] <= kept[..., :-1]).any()):
            raise ValueError(f"positions: expected ascending positions below {m} in each group")
        last = cols - m * (self.groups - 1)  # inputs of the last group
        if bool(((kept[:, -1] >= last) & (values[:, -1] != 0)).any()):
            raise ValueError(f"values: a value behind input {cols - 1} is not 0")
        # A stored zero at the lowest free position has every position below it kept as well, so
        # its rank in the group is its position. This gives one matrix one packed form.
        if bool(((values == 0) & (kept != torch.arange(n, device=kept.device))).any()):
            raise ValueError("positions: a stored zero is not at the lowest free position")
