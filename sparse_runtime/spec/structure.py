"""Which positions of a weight may be nonzero."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .text import NUMBER

StructureKind = Literal["dense", "unstructured", "nm", "block"]

# A bound on what a hostile file can ask for.
MAX_BLOCK = 4096

_NM = re.compile(f"{NUMBER}:{NUMBER}")
_BLOCK = re.compile(f"block:{NUMBER}x{NUMBER}")


@dataclass(frozen=True)
class Structure:
    """Which positions of a weight may be nonzero. Build it with :meth:`parse`.

    Attributes:
        kind: "dense", "unstructured", "nm" or "block".
        n: N:M only, values kept in each group of ``m`` consecutive inputs, 1 <= n < m <= 16.
        m: N:M only, the group's length along the inputs.
        rows: block only, outputs in one block.
        cols: block only, inputs in one block.
    """

    kind: StructureKind
    n: int = 0
    m: int = 0
    rows: int = 0
    cols: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("dense", "unstructured", "nm", "block"):
            raise ValueError(
                f"structure {self.kind!r}: expected 'dense', 'unstructured', 'nm' or 'block'"
            )
        if (self.kind != "nm" and (self.n or self.m)) or (
            self.kind != "block" and (self.rows or self.cols)
        ):
            raise ValueError(
                f"structure {self.kind!r}: n and m belong to 'nm', rows and cols to 'block'"
            )
        if self.kind == "nm" and not 1 <= self.n < self.m <= 16:
            raise ValueError(f"structure {self.n}:{self.m}: expected 1 <= N < M <= 16")
        sides = (self.rows, self.cols)
        if self.kind == "block" and not all(1 <= side <= MAX_BLOCK for side in sides):
            raise ValueError(f"structure {self}: a block's sides lie from 1 to {MAX_BLOCK}")

    @classmethod
    def parse(cls, text: str) -> Structure:
        """Read "dense", "unstructured", "N:M" or "block:RxC" (R outputs by C inputs).

        Raises:
            ValueError: for any other text, naming the accepted forms.
        """
        if text == "dense":
            return cls("dense")
        if text == "unstructured":
            return cls("unstructured")
        if match := _NM.fullmatch(text):
            return cls("nm", n=int(match[1]), m=int(match[2]))
        if match := _BLOCK.fullmatch(text):
            return cls("block", rows=int(match[1]), cols=int(match[2]))
        raise ValueError(
            f"structure {text!r}: expected 'dense', 'unstructured', 'N:M' (such as '2:4') or "
            "'block:RxC' (R outputs by C inputs, such as 'block:4x1')"
        )

    def __str__(self) -> str:
        if self.kind == "nm":
            return f"{self.n}:{self.m}"
        if self.kind == "block":
            return f"block:{self.rows}x{self.cols}"
        return self.kind
