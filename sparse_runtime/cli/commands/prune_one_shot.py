"""The half of `sparse-runtime prune` that needs no training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..text_files import read_calibration
from .prune_search import read_formats, read_shape

if TYPE_CHECKING:
    from ...compress.oneshot.report import PruneReport
    from ...tools.targets import TargetReport


def one_shot(
    model: str,
    out: str,
    data: str,
    *,
    texts: int | None,
    damping: float,
    target: str | None,
    formats: str | None,
    shape: str | None,
    **options: Any,
) -> PruneReport | TargetReport:
    """Read the calibration texts and compress.

    Args:
        model: checkpoint, a directory or a hub id.
        out: directory to write.
        data: file of texts, one a line.
        texts: how many to use, from the first; None is all.
        damping: of the solver.
        target: what the layers may cost together, or None.
        formats: to choose from for it.
        shape: of the batches that a latency target is for, or None.
        options: of ``compress.oneshot.prune.prune``, by its names.

    Raises:
        ValueError: the file holds no text, or as ``prune`` does.
    """
    from ...compress.oneshot.prune import prune
    from ...compress.oneshot.solvers import SolverOptions

    if shape is not None and (target is None or not target.strip().startswith("latency")):
        raise ValueError(
            "--shape: belongs to --target latency=...; leave it out, or give such a target"
        )
    options |= {
        "calibration": read_calibration(data, "--data")[:texts],
        "options": SolverOptions(damping=damping),
    }
    if target is None:
        if formats is not None:
            raise ValueError("--formats: belongs to --target; leave it out, or give a target")
        return prune(model, out, **options)
    from ...tools.targets import prune_to_target

    return prune_to_target(
        model, out, target=target, formats=read_formats(formats), shape=read_shape(shape), **options
    )
