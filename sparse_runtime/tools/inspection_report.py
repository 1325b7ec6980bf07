"""What inspect() reports: a row a matrix, and the totals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..checkpoints import Recognition
from ..checkpoints.errors import listed
from .tables import add_rows_by_layer, human_bytes, layout_lines, new_table, percent, shape_text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


@dataclass(frozen=True)
class MatrixReport:
    """One 2-D tensor.

    Attributes:
        name: tensor name in the checkpoint.
        kind: "encoder_linear", "embedding", "head", "norm" or "other".
        shape: (out_features, in_features) of a linear layer, (entries, features) of a table.
        dtype: "float32", "bfloat16" or "float16"; the value string of a packed matrix.
        density: share of nonzeros.
        structure: what the zeros show, or what a packed matrix is stored in.
        fill: share of nonzeros among the positions that the structure stores.
        empty_rows: outputs without a nonzero.
        empty_cols: inputs without a nonzero.
        heads: attention heads along the rows (query, key, value) or columns (attention output).
        empty_heads: how many of them are all zero.
        bytes: bytes as stored.
        sizes: structure -> packed bytes with int8 values; as stored for a packed matrix.
        recommended: the structure that convert takes by itself; None where it keeps the matrix.
        shared_with: other names of the same tensor.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    dtype: str
    density: float
    structure: str
    fill: float
    empty_rows: int
    empty_cols: int
    heads: int | None
    empty_heads: int | None
    bytes: int
    sizes: dict[str, int]
    recommended: str | None
    shared_with: tuple[str, ...]


@dataclass(frozen=True)
class Total:
    """Sums over matrices of one kind.

    Attributes:
        matrices: how many.
        parameters: their elements.
        nonzeros: elements that are not zero.
        bytes: bytes as stored.
        packed_bytes: bytes after packing in the recommended structures with int8 values; as
            stored where nothing is recommended.
    """

    matrices: int
    parameters: int
    nonzeros: int
    bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class InspectReport:
    """A checkpoint or packed model, matrix by matrix.

    Attributes:
        source: hub id, or name of the directory.
        layout: the layouts it has, and which reader opened it.
        model_type: as config.json states it.
        packed: whether it is a packed model, whose rows are reported as stored.
        matrices: one row a 2-D tensor.
        vectors: number of other tensors: biases and norms.
        vector_bytes: their bytes.
        recognised: each layout that is not plain, and what showed it.
        steps: what was done to the file's tensors.
        renamed: name in the file -> name here, where they differ.
        dropped: name of what was left out -> why.
    """

    source: str
    layout: str
    model_type: str | None
    packed: bool
    matrices: list[MatrixReport]
    vectors: int
    vector_bytes: int
    recognised: tuple[Recognition, ...] = ()
    steps: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    def totals(self) -> dict[str, Total]:
        """Sums by kind, and "all"."""
        kinds = sorted({row.kind for row in self.matrices})
        groups = {kind: [row for row in self.matrices if row.kind == kind] for kind in kinds}
        return {kind: _total(rows) for kind, rows in (groups | {"all": self.matrices}).items()}

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, totals included."""
        return asdict(self) | {"totals": {kind: asdict(t) for kind, t in self.totals().items()}}

    def __rich__(self) -> Group:
        """Tables for a terminal: the matrices, then sums by kind."""
        from rich.console import Group

        notes = [] if self.packed else ["packed: int8 values in the structure shown"]
        notes.append(f"{self.vectors} vectors (biases, norms): {human_bytes(self.vector_bytes)}")
        if self.renamed:
            notes.append(f"{len(self.renamed)} tensors read under today's names")
        if self.dropped:
            notes.append(f"left out: {listed(self.dropped)}")
        layouts = layout_lines(self.recognised, self.steps)
        return Group(*layouts, self._matrix_table(), self._total_table(), "; ".join(notes))

    def _matrix_table(self) -> Table:
        """The columns that say something; to_dict() has all of them."""
        rows = self.matrices
        columns = {
            "shape": [shape_text(row.shape) for row in rows],
            "dtype": [row.dtype for row in rows] if len({row.dtype for row in rows}) > 1 else [],
            "density": [percent(row.density) for row in rows],
            "structure": [row.structure for row in rows],
            "empty": [_empty_text(row) for row in rows],
            "bytes": [human_bytes(row.bytes) for row in rows],
        }
        if not any(columns["empty"]):
            columns["empty"] = []
        if not self.packed:
            columns["packed"] = [_packed_text(row, row.recommended) for row in rows]
        if any(row.recommended not in (None, "dense") for row in rows):
            columns["as dense"] = [_packed_text(row, "dense") for row in rows]
        shown = {title: cells for title, cells in columns.items() if cells}
        title = f"{self.source} ({self.model_type or 'no model_type'}, {self.layout})"
        table = new_table(title, ["matrix", *shown])
        cells = [list(row) for row in zip(*shown.values(), strict=True)]
        add_rows_by_layer(table, zip(map(_label, rows), cells, strict=True))
        return table

    def _total_table(self) -> Table:
        columns = ["kind", "matrices", "parameters", "density", "bytes"]
        table = new_table("totals", columns if self.packed else [*columns, "packed"])
        for kind, total in self.totals().items():
            cells = [
                f"{total.matrices}",
                f"{total.parameters:,}",
                percent(total.nonzeros / total.parameters) if total.parameters else "",
                human_bytes(total.bytes),
            ]
            packed = [] if self.packed else [human_bytes(total.packed_bytes)]
            table.add_row(kind, *cells, *packed)
        return table


def _total(rows: list[MatrixReport]) -> Total:
    sizes = [row.sizes[row.recommended] if row.recommended else row.bytes for row in rows]
    parameters = [row.shape[0] * row.shape[1] for row in rows]
    return Total(
        matrices=len(rows),
        parameters=sum(parameters),
        nonzeros=sum(
            round(row.density * count) for row, count in zip(rows, parameters, strict=True)
        ),
        bytes=sum(row.bytes for row in rows),
        packed_bytes=sum(sizes),
    )


def _label(row: MatrixReport) -> str:
    return " = ".join(name.removesuffix(".weight") for name in (row.name, *row.shared_with))


def _empty_text(row: MatrixReport) -> str:
    counts = {
        "rows": row.empty_rows,
        "cols": row.empty_cols,
        f"of {row.heads} heads": row.empty_heads,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _packed_text(row: MatrixReport, structure: str | None) -> str:
    if row.recommended is None or structure is None:
        return "kept"
    return human_bytes(row.sizes[structure])
