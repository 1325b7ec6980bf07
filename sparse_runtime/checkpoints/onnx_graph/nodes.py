"""One operation of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Node:
    """One operation; two are the same only as objects.

    Attributes:
        op: its type, such as "MatMul".
        name: as the exporter gave it; may be empty.
        inputs: names of values, "" for an optional one that is left out.
        outputs: likewise.
        attributes: numbers, strings and lists of them by name.
        scope: path of the torch module that it belongs to, as the exporter noted it, or None.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    scope: str | None = None

    def input(self, place: int) -> str:
        """Name of an input, "" where it is left out."""
        return self.inputs[place] if place < len(self.inputs) else ""

    @property
    def title(self) -> str:
        """What errors call it."""
        return f"{self.op} {self.name or ' '.join(self.outputs)}"
