"""Where the time of a forward pass goes: the stages of a pass, by kind."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from sparse_runtime.benchmarks.floors import LAYER, stage_floor
from sparse_runtime.encoders import SparseModel

PASSES = 5


def stage_kind(label: str) -> str:
    """A stage's label without the index of its layer: "output.dense (norm)"."""
    names, _, step = label.partition(" (")
    kinds = [LAYER.sub("", name) for name in names.split(" + ")]
    return " + ".join(kinds) + (f" ({step}" if step else "")


def breakdown(model: SparseModel, inputs: Mapping[str, object]) -> dict[str, float]:
    """Seconds of one pass by kind of stage, the mean of several, in the order in which they run.

    Raises:
        RuntimeError: the model's backend does not run in stages.
    """
    model(**inputs)
    with model.stage_times() as times:
        for _ in range(PASSES):
            model(**inputs)
    sums: dict[str, float] = {}
    for label, seconds in times:
        kind = stage_kind(label)
        sums[kind] = sums.get(kind, 0.0) + seconds / PASSES
    return sums


def render_breakdown(title: str, sums: dict[str, float], floors: dict[str, float]) -> Table:
    """A table of the stages: their share of the pass, and how much of their time the floor is.

    Args:
        title: of the table.
        sums: from :func:`breakdown`.
        floors: from :func:`~sparse_runtime.benchmarks.floors.product_floors`.
    """
    table = Table(title=title)
    for column in ("stage", "ms", "%", "floor ms", "floor %"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    total = sum(sums.values())
    by_stage = {kind: stage_floor(kind, floors) for kind in sums}
    for kind, seconds in sums.items():
        table.add_row(kind, *_cells(seconds, total, by_stage[kind]))
    table.add_section()
    linears = {kind for kind, floor in by_stage.items() if floor and kind != "attention"}
    table.add_row(
        "linear layers",
        *_cells(
            sum(sums[kind] for kind in linears), total, sum(by_stage[kind] or 0 for kind in linears)
        ),
    )
    table.add_row("all", *_cells(total, total, sum(floor or 0 for floor in by_stage.values())))
    return table


def _cells(seconds: float, total: float, floor: float | None) -> list[str]:
    cells = [f"{1e3 * seconds:.3f}", f"{100 * seconds / total:.1f}"]
    if floor:
        cells += [f"{1e3 * floor:.3f}", f"{100 * floor / seconds:.0f}"]
    return cells
