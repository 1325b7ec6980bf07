"""What prune() reports: a row a layer, with what magnitude pruning would have lost."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .layerwise import LayerRow
from .structured import StructuredReport

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class PruneReport:
    """The outcome of one-shot compression.

    Attributes:
        source: hub id, or name of the source directory or of the model's class.
        directory: where the checkpoint was written, or None.
        arguments: as they were asked for.
        layers: the layers that were compressed, in the order of the network.
        sparsity: share of zeros in the matrices that were asked for, whatever made them zero.
        texts: calibration texts.
        tokens: their tokens, padding excluded.
        seconds: wall time.
        notes: arguments that came to nothing, and why.
        removed: which heads and neurons are left; None where all are.
    """

    source: str
    directory: str | None
    arguments: dict[str, Any]
    layers: list[LayerRow]
    sparsity: float
    texts: int
    tokens: int
    seconds: float
    notes: tuple[str, ...] = ()
    removed: StructuredReport | None = None

    @property
    def error(self) -> float:
        """Mean relative output error of the layers; 0 where none was solved."""
        return sum(row.error for row in self.layers) / max(1, len(self.layers))

    @property
    def magnitude_error(self) -> float:
        """The same for pruning by magnitude and rounding to nearest."""
        return sum(row.magnitude_error for row in self.layers) / max(1, len(self.layers))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        means = {"error": self.error, "magnitude_error": self.magnitude_error}
        removed = None if self.removed is None else self.removed.to_dict()
        return asdict(replace(self, removed=None)) | means | {"removed": removed}

    def __rich__(self) -> Group:
        """A table for a terminal; layers that differ only in their number share a row."""
        from rich import box
        from rich.console import Group
        from rich.table import Table

        table = Table(title=self.source, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        for number, column in enumerate(_COLUMNS):
            table.add_column(column, justify="right" if number else "left")
        for cells in self._table():
            table.add_row(*cells)
        written = "not written" if self.directory is None else f"written to {self.directory}"
        return Group(
            *([table] if self.layers else [self.source]),
            *self._removal(),
            f"{self._solved()}{self.sparsity:.1%} zeros; {self.texts:,} texts, "
            f"{self.tokens:,} tokens",
            f"{written}, {self.seconds:.1f} s",
            *self.notes,
        )

    def _removal(self) -> list[str]:
        if self.removed is None:
            return []
        return [
            f"removed {self.removed.heads_removed:,} heads and {self.removed.neurons_removed:,} "
            f"neurons; the others take {self.removed.flops:.1%} of the multiply-adds"
        ]

    def _solved(self) -> str:
        if not self.layers:
            return ""
        return (
            f"{len(self.layers)} layers, output error {self.error:.3f}, by magnitude "
            f"{self.magnitude_error:.3f}; "
        )

    def _table(self) -> list[tuple[str, ...]]:
        groups: dict[tuple[Any, ...], list[LayerRow]] = {}
        for row in self.layers:
            label = re.sub(r"\.\d+\.", ".*.", row.name)
            groups.setdefault((label, row.shape, row.pattern, row.values), []).append(row)
        return [_cells(str(key[0]), rows) for key, rows in groups.items()]


_COLUMNS = ("layers", "n", "shape", "pattern", "values", "zeros", "error", "worst", "by magnitude")


def _cells(label: str, rows: list[LayerRow]) -> tuple[str, ...]:
    first, count = rows[0], len(rows)
    return (
        label,
        str(count),
        f"{first.shape[0]} × {first.shape[1]}",
        first.pattern or "",
        first.values or "float",
        f"{sum(row.sparsity for row in rows) / count:.1%}",
        f"{sum(row.error for row in rows) / count:.3f}",
        f"{max(row.error for row in rows):.3f}",
        f"{sum(row.magnitude_error for row in rows) / count:.3f}",
    )
