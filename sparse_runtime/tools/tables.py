"""Tables and small pieces of text that the reports of the tools share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from ..checkpoints import Recognition

_LAYER = re.compile(r"(.*\blayers?\.(?:\d+|\*))\.(.+)")


def human_bytes(count: int) -> str:
    """Bytes with three digits and a binary unit: "1.5 MiB"."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{count} B" if units[0] == "B" else f"{size:.3g} {units[0]}"


def percent(share: float) -> str:
    """A share as percent, never rounded to a false 0 or 100: "99.9 %"."""
    text = f"{100 * share:.1f}"
    if text == "100.0" and share < 1:
        text = ">99.9"
    elif text == "0.0" and share > 0:
        text = "<0.1"
    return f"{text} %"


def shape_text(shape: tuple[int, ...]) -> str:
    """Sizes of a matrix: "384 × 1536"."""
    return " × ".join(map(str, shape))


def new_table(title: str, columns: Iterable[str]) -> Table:
    """An empty table: names on the left, numbers on the right, narrow enough for 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for number, column in enumerate(columns):
        if number == 0:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def add_rows_by_layer(table: Table, rows: Iterable[tuple[str, list[str]]]) -> None:
    """Add (name, cells) rows; rows of one encoder layer stand indented under the layer's name."""
    above = ""
    for name, cells in rows:
        match = _LAYER.fullmatch(name)
        layer, rest = (match[1], match[2]) if match else ("", name)
        if layer and layer != above:
            table.add_row(layer, style="bold")
        above = layer
        table.add_row(f"  {rest}" if layer else rest, *cells)


def layout_lines(recognised: Iterable[Recognition], steps: Iterable[str]) -> list[str]:
    """The layouts that were recognised, and what was done to undo them."""
    return [
        *(f"layout {found.layout}: {found.why}" for found in recognised),
        *(f"  {step}" for step in steps),
    ]
