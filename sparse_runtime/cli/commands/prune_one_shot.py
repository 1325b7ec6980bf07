"""The half of `sparse-runtime prune` that needs no training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import WrongUsage
from ..text_files import read_calibration
from .prune_search import read_formats, read_shape

if TYPE_CHECKING:
    from ...compress.oneshot.report import PruneReport
    from ...compress.oneshot.sensitivity_run import SensitivityReport
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
    sensitivity: str | None,
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
        sensitivity: figure of what the target's formats change, or None.
        options: of ``compress.oneshot.prune.prune``, by its names.

    Raises:
        WrongUsage: the options contradict each other.
        ValueError: the file holds no text, or as ``prune`` does.
    """
    from ...compress.oneshot.prune import prune
    from ...compress.oneshot.sensitivity_files import check_figure
    from ...compress.oneshot.solvers import SolverOptions

    if shape is not None and (target is None or not target.strip().startswith("latency")):
        raise WrongUsage(
            "--shape: belongs to --target latency=...; leave it out, or give such a target"
        )
    options |= {
        "calibration": read_calibration(data, "--data")[:texts],
        "options": SolverOptions(damping=damping),
    }
    if target is None:
        if sensitivity is not None:
            raise WrongUsage(
                "--sensitivity: with --out it draws what a --target chooses by; give a target, or "
                "leave --out out to measure only"
            )
        if formats is not None:
            raise WrongUsage("--formats: belongs to --target; leave it out, or give a target")
        return prune(model, out, **options)
    from ...tools.targets import prune_to_target

    if sensitivity is not None:
        check_figure(sensitivity, options.get("state_dir"))
    report = prune_to_target(
        model, out, target=target, formats=read_formats(formats), shape=read_shape(shape), **options
    )
    if sensitivity is not None:
        report.sensitivity.save(sensitivity)
    return report


def only_measure(
    model: str,
    data: str,
    figure: str,
    *,
    formats: str | None,
    method: str | None,
    texts: int | None,
    damping: float,
    **options: Any,
) -> SensitivityReport:
    """Draw what each layer changes in each format, and prune nothing.

    Args:
        model: checkpoint, a directory or a hub id.
        data: file of texts, one a line.
        figure: file to draw; its numbers go beside it.
        formats: to try.
        method: how weights are found; None is the quick one that targets take.
        texts: how many to use, from the first; None is all.
        damping: of the solver.
        options: of ``measure_sensitivity``, by its names.

    Raises:
        ValueError: the file holds no text, or as ``measure_sensitivity`` does.
        FileExistsError: the figure is there.
    """
    from ...compress.oneshot.sensitivity_files import check_figure
    from ...compress.oneshot.sensitivity_run import measure_sensitivity
    from ...compress.oneshot.solvers import SolverOptions

    check_figure(figure, options.get("state_dir"))
    if formats is not None:
        options["formats"] = read_formats(formats)
    if method is not None:
        options["method"] = method
    report = measure_sensitivity(
        model,
        calibration=read_calibration(data, "--data")[:texts],
        options=SolverOptions(damping=damping),
        **options,
    )
    report.table.save(figure)
    return report
