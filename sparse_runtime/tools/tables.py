"""Small pieces of text that the reports of the tools share."""

from __future__ import annotations


def human_bytes(count: int) -> str:
    """Bytes with three digits and a binary unit: "1.50 MiB"."""
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
