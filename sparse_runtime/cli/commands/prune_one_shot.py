"""The half of `sparse-runtime prune` that needs no training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..text_files import read_calibration

if TYPE_CHECKING:
    from ...compress.oneshot.report import PruneReport


def one_shot(
    model: str, out: str, data: str, *, texts: int | None, damping: float, **options: Any
) -> PruneReport:
    """Read the calibration texts and compress.

    Args:
        model: checkpoint, a directory or a hub id.
        out: directory to write.
        data: file of texts, one a line.
        texts: how many to use, from the first; None is all.
        damping: of the solver.
        options: of ``compress.oneshot.prune.prune``, by its names.

    Raises:
        ValueError: the file holds no text, or as ``prune`` does.
    """
    from ...compress.oneshot.prune import prune
    from ...compress.oneshot.solvers import SolverOptions

    return prune(
        model,
        out,
        calibration=read_calibration(data)[:texts],
        options=SolverOptions(damping=damping),
        **options,
    )
