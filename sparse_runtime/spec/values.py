"""How the kept numbers of a weight are written, and which of them share a scale."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .text import NUMBER

Granularity = Literal["tensor", "row", "chunk", "group"]

FLOAT_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
INTEGER_RANGES: dict[str, tuple[int, int]] = {"int8": (-128, 127), "int4": (-8, 7)}
VALUE_DTYPES: tuple[str, ...] = (*FLOAT_DTYPES, *INTEGER_RANGES)

_CHUNK = re.compile(f"chunk:{NUMBER}")
_GROUP = re.compile(f"group:{NUMBER}")


@dataclass(frozen=True)
class ValueSpec:
    """How the kept numbers are written.

    Attributes:
        dtype: "fp32", "bf16", "fp16", "int8" or "int4" (two per byte, computed as int8).
        granularity: integers only, which values share one float32 scale: those of all rows
            (outputs, "tensor"), of one ("row"), of ``chunk_rows`` consecutive ones ("chunk"), or
            ``group_cols`` consecutive inputs of one row ("group"). Floats have no scales; whatever
            is given, theirs reads "row".
        chunk_rows: "chunk" only; the last chunk may be shorter.
        zero_points: integers only, whether every scale has an int8 zero point beside it:
            ``w = (q - zero_point) * scale``. Unsigned values of a file, q' with zero point z', are
            q = q' - 128 and z' - 128. Only for dense weights: elsewhere a position that is not
            stored is 0.
        group_cols: "group" only; the last group of a row may be shorter. As in the groups of
            compressed-tensors, GPTQ and torchao.
    """

    dtype: str
    granularity: Granularity = "row"
    chunk_rows: int = 0
    zero_points: bool = False
    group_cols: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in VALUE_DTYPES:
            raise ValueError(f"values {self.dtype!r}: expected one of {', '.join(VALUE_DTYPES)}")
        if self.granularity not in ("tensor", "row", "chunk", "group"):
            raise ValueError(
                f"scales {self.granularity!r}: expected 'tensor', 'row', 'chunk:R' or 'group:G'"
            )
        self._check_length("chunk", "chunk_rows", self.chunk_rows)
        self._check_length("group", "group_cols", self.group_cols)
        if self.zero_points and not self.is_integer:
            raise ValueError(f"zero_points: {self.dtype} values have none, only int8 and int4 do")
        if not self.is_integer:
            # Equal descriptions compare equal, whatever scales were named for values without any.
            object.__setattr__(self, "granularity", "row")
            object.__setattr__(self, "chunk_rows", 0)
            object.__setattr__(self, "group_cols", 0)

    def _check_length(self, kind: str, name: str, length: int) -> None:
        if (self.granularity == kind) != (length >= 1):
            raise ValueError(
                f"scales {self.granularity!r} with {name}={length}: {name} is at least 1 for "
                f"{kind!r} and 0 otherwise"
            )

    @classmethod
    def parse(cls, dtype: str, scales: str = "row", *, zero_points: bool = False) -> ValueSpec:
        """Read a value string and a scale string ("tensor", "row", "chunk:R" or "group:G")."""
        if match := _CHUNK.fullmatch(scales):
            return cls(dtype, "chunk", int(match[1]), zero_points)
        if match := _GROUP.fullmatch(scales):
            return cls(dtype, "group", 0, zero_points, int(match[1]))
        return cls(dtype, scales, 0, zero_points)  # type: ignore[arg-type]  # __post_init__ checks

    @property
    def is_integer(self) -> bool:
        """Whether the values are integers with scales."""
        return self.dtype in INTEGER_RANGES

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of unpacked values; int4 unpacks to torch.int8."""
        return FLOAT_DTYPES.get(self.dtype, torch.int8)

    @property
    def bits(self) -> int:
        """Bits of one stored value."""
        return {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4}[self.dtype]

    @property
    def scales(self) -> str:
        """The scale string that :meth:`parse` reads."""
        lengths = {"chunk": f"chunk:{self.chunk_rows}", "group": f"group:{self.group_cols}"}
        return lengths.get(self.granularity, self.granularity)

    def scale_count(self, rows: int, cols: int) -> int:
        """Number of float32 scales a weight [rows, cols] carries (0 for floats)."""
        if not self.is_integer:
            return 0
        if self.granularity == "tensor":
            return 1
        if self.granularity == "group":
            return rows * -(-cols // self.group_cols)
        return rows if self.granularity == "row" else -(-rows // self.chunk_rows)

    def spread(self, scales: Tensor, rows: int, cols: int) -> Tensor:
        """The scales, or zero points, of a weight [rows, cols], to be broadcast over it.

        Args:
            scales: [``scale_count(rows, cols)``].
            rows: outputs of the weight.
            cols: inputs of the weight.

        Returns:
            [1, 1] for "tensor", [rows, 1] for "row" and "chunk", [rows, cols] for "group".
        """
        # Not repeat_interleave: a group may name far more inputs than there are.
        if self.granularity == "group":
            group = torch.arange(cols, device=scales.device) // self.group_cols
            return scales.view(rows, -1)[:, group]
        if self.granularity == "chunk":
            scales = scales[torch.arange(rows, device=scales.device) // self.chunk_rows]
        return scales.unsqueeze(1)

    def select(
        self, scales: Tensor, shape: tuple[int, int], rows: Tensor, columns: Tensor
    ) -> Tensor:
        """The scales, or zero points, of some rows and columns of a weight.

        Args:
            scales: [``scale_count(*shape)``].
            shape: (rows, columns) of the weight.
            rows: int64, ascending; of a chunk all rows or none.
            columns: int64, ascending; of a group all columns or none.

        Returns:
            [``scale_count(len(rows), len(columns))``].
        """
        height = {"tensor": shape[0], "chunk": self.chunk_rows}.get(self.granularity, 1)
        width = self.group_cols or shape[1]
        grid = scales.view(-1, -(-shape[1] // width))
        return grid[(rows // height).unique()][:, (columns // width).unique()].flatten()
