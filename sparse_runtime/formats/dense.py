"""Dense: every value, row-major.

    values  [out, in]                    fp32, bf16, fp16, int8
            [out, ceil(in / 2)] uint8    int4: byte j = w[2j] | w[2j + 1] << 4

See docs/formats/dense.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from ..spec import LinearSpec
from .base import PackedWeight, check_nibble_padding, decode_values, encode_values, stored_shape


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseWeight(PackedWeight):
    """All values of the matrix."""

    @classmethod
    def pack(cls, weight: Tensor, spec: LinearSpec, scales: Tensor | None = None) -> Self:
        return cls(spec=spec, values=encode_values(weight, spec), scales=scales)

    def unpack(self) -> Tensor:
        return decode_values(self.values, self.spec, self.spec.shape[1])

    def _expected(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"values": stored_shape(self.spec, *self.spec.shape)}

    def _check_content(self) -> None:
        check_nibble_padding(self.values, self.spec, self.spec.shape[1])
