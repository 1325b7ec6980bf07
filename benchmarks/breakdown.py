"""Where the time of a forward pass goes: the stages of a pass, by kind."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rich.table import Table

from sparse_runtime.encoders import SparseModel

_LAYER = re.compile(r"^.*\.\d+\.")
PASSES = 5


def stage_kind(label: str) -> str:
    """A stage's label without the index of its layer: "output.dense (norm)"."""
    names, _, step = label.partition(" (")
    kinds = [_LAYER.sub("", name) for name in names.split(" + ")]
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


def render_breakdown(title: str, sums: dict[str, float]) -> Table:
    """A table of the stages with their share."""
    table = Table(title=title)
    table.add_column("stage")
    table.add_column("ms", justify="right")
    table.add_column("%", justify="right")
    total = sum(sums.values())
    for kind, seconds in sums.items():
        table.add_row(kind, f"{1e3 * seconds:.3f}", f"{100 * seconds / total:.1f}")
    return table
