"""One way to make and save a figure, without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches.

    Raises:
        ImportError: matplotlib is not installed; says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'sparse-runtime[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path | str) -> None:
    """Write the figure; makes the folder. The file name's ending chooses the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):  # text stays text: small files, to be searched
        figure.savefig(path, dpi=150)
