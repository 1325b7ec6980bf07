"""A table of sensitivities on disk: a figure, and its numbers beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..targets import Component, component
from .state import check_folder

if TYPE_CHECKING:
    from .sensitivity import SensitivityTable

FIGURES = (".svg", ".png", ".pdf")
AXIS = "relative squared change of the outputs"
_LEAST = 1e-12
"""What a logarithmic axis shows for nothing."""


def check_figure(path: str | Path, state_dir: str | Path | None = None) -> tuple[Path, Path]:
    """Where the figure and its numbers go; what would be refused after minutes is refused here.

    Args:
        path: of the figure.
        state_dir: of the same run, whose files are none of ours.

    Raises:
        ValueError: the name ends otherwise than figures do, or lies in ``state_dir``.
        FileExistsError: one of the two is there, or a file where their directory should be.
        ImportError: matplotlib is not installed (extra "plot").
    """
    figure = Path(path).expanduser()
    if figure.suffix not in FIGURES:
        raise ValueError(
            f"sensitivity (--sensitivity) {path}: expected a name that ends in "
            f"{', '.join(FIGURES)}, got {figure.suffix or 'no ending'!r}"
        )
    check_folder(figure.parent, "sensitivity (--sensitivity)", path)
    if state_dir is not None and figure.parent.resolve() == Path(state_dir).expanduser().resolve():
        raise ValueError(
            f"sensitivity (--sensitivity) {path}: expected a figure outside of the state directory "
            f"{state_dir} (--state), whose files its numbers could overwrite; give another path"
        )
    numbers = figure.with_suffix(".json")
    for one in (figure, numbers):
        if one.exists():
            raise FileExistsError(
                f"sensitivity (--sensitivity) {one}: is there already, and takes the "
                f"{'figure' if one is figure else 'numbers'}; give another name, or remove it"
            )
    _require_matplotlib()
    return figure, numbers


def save_sensitivity(table: SensitivityTable, path: str | Path) -> None:
    """Write the figure, and a JSON file of the same name with the numbers.

    Raises:
        ValueError: as :func:`check_figure`; so do FileExistsError and ImportError.
    """
    figure, numbers = check_figure(path)
    figure.parent.mkdir(parents=True, exist_ok=True)
    data = {"error": AXIS, "units": table.to_dict()}
    # Both or none: what is there blocks a second try.
    drawn, written = (one.with_stem(f"{one.stem}.partial") for one in (figure, numbers))
    try:
        draw_sensitivity(table, drawn)
        written.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        drawn.replace(figure)
        written.replace(numbers)
    finally:
        drawn.unlink(missing_ok=True)
        written.unlink(missing_ok=True)


def draw_sensitivity(table: SensitivityTable, path: str | Path) -> None:
    """Draw the errors, a line a format.

    Raises:
        ImportError: matplotlib is not installed (extra "plot").
    """
    _require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    units, formats = table.units, table.formats
    figure = Figure(figsize=(max(6.0, 0.28 * len(units)), 5.0), layout="constrained")
    axes = figure.add_subplot()
    for choice in formats:
        errors = [max(table.error(unit, choice), _LEAST) for unit in units]
        axes.plot(range(len(units)), errors, marker="o", markersize=3, label=str(choice))
    axes.set_yscale("log")
    axes.set_xticks(range(len(units)), [short_name(unit) for unit in units], rotation=90, size=7)
    axes.set_ylabel(AXIS)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    # Text as text, and the same file for the same numbers.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sensitivity"}):
        svg = Path(path).suffix == ".svg"
        figure.savefig(path, dpi=120, metadata={"Date": None} if svg else None)


def short_name(unit: str) -> str:
    """A unit in a few characters: "3 ffn_in", "3 query + key + value"."""
    names = unit.split(" + ")
    parts: list[Component] = [component(name) for name in names]
    index = next(part for part in names[0].split(".") if part.isdecimal())
    return f"{index} {' + '.join(parts)}"


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "plot: matplotlib is not installed; pip install 'sparse-runtime[plot]'"
        ) from error
