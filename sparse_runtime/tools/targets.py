"""prune() towards a target: formats chosen layer by layer, costs measured by this runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..compress.oneshot.allocation import Allocation, CostTable, Target, amount_text
from ..compress.oneshot.layer_format import LayerFormat
from ..compress.oneshot.layerwise import Format
from ..compress.oneshot.plans import REFERENCE, Batches, SearchPlan
from ..compress.oneshot.prune import prune
from ..compress.oneshot.report import PruneReport
from ..compress.oneshot.sensitivity import short_name
from ..encoders import SparseModel
from .layer_latency import ROUNDS, Shape, latency_costs, measure_latency, pack_model

if TYPE_CHECKING:
    from rich.console import Group

SHAPE = Shape(8, 128)


@dataclass(frozen=True)
class TargetReport:
    """What :func:`prune_to_target` did.

    Attributes:
        prune: the layers, as without a target.
        allocation: formats, the cost that was predicted and the budget.
        measured: latency only, seconds of the finished model; None otherwise.
        reference: latency only, seconds of the same model in dense INT8, in the same run.
    """

    prune: PruneReport
    allocation: Allocation
    measured: float | None
    reference: float | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        seconds = {"measured_seconds": self.measured, "dense_int8_seconds": self.reference}
        return self.prune.to_dict() | {"target": self.allocation.to_dict() | seconds}

    def __rich__(self) -> Group:
        """The table of layers, the formats, and the prediction beside what was measured."""
        from rich.console import Group

        found = self.allocation
        lines = [
            f"{choice}: {', '.join(short_name(u) for u, f in found.formats.items() if f == choice)}"
            for choice in dict.fromkeys(found.formats.values())
        ]
        cost, budget = (amount_text(x, found.kind) for x in (found.cost, found.budget))
        lines.append(f"{found.kind}: predicted {cost}, allowed {budget}")
        if self.measured is not None:
            reference = self.reference or 0.0
            lines.append(
                f"measured {self.measured * 1e3:.3f} ms, dense INT8 {reference * 1e3:.3f} ms"
            )
        return Group(self.prune.__rich__(), *lines)


class _Watching(SearchPlan):
    """Keeps hold of the model, to time it when its layers are solved."""

    model: nn.Module

    def __call__(
        self, model: nn.Module, batches: Batches, formats: Mapping[str, Format]
    ) -> dict[str, Format]:
        self.model = model
        return super().__call__(model, batches, formats)


def prune_to_target(
    source: str | Path | nn.Module,
    out_dir: str | Path | None,
    *,
    target: str,
    calibration: Sequence[str],
    formats: Sequence[str] = (),
    shape: Shape = SHAPE,
    rounds: int = ROUNDS,
    plan: SearchPlan | None = None,
    **options: Any,
) -> TargetReport:
    """Choose a format for each layer so that the whole meets a target, then compress.

    Args:
        source: as for ``prune``.
        out_dir: as for ``prune``.
        target: "latency=0.6x", "latency=3ms", "size=0.5x", "size=6MB" or "flops=0.5x"; shares are
            of the same model in dense INT8.
        calibration: texts.
        formats: to choose from, such as "2:4 int8"; none takes dense and 2:4 in INT8 and INT4.
        shape: batches that a latency target is for, on this machine and its current threads.
        rounds: timed passes.
        plan: what else is to be done before; its target and candidates are replaced.
        options: of ``prune``.

    Raises:
        ValueError: as ``prune`` does; or the target cannot be met, with what the cheapest costs.
    """
    wanted = Target.parse(target)

    def measure(
        model: nn.Module,
        units: Mapping[str, Sequence[str]],
        choices: Sequence[LayerFormat],
        reference: LayerFormat,
    ) -> CostTable:
        return latency_costs(model, units, choices, reference, shape, rounds=rounds)

    base = plan or SearchPlan()
    watching = _Watching(
        keep_flops=base.keep_flops,
        tuning=base.tuning,
        reorder=base.reorder,
        smooth=base.smooth,
        target=wanted,
        candidates=tuple(map(LayerFormat.parse, formats)) or base.candidates,
        measure=measure,
        seed=base.seed,
        progress=base.progress,
    )
    report = prune(source, out_dir, calibration=calibration, plan=watching, **options)
    allocation = watching.allocation
    assert allocation is not None  # the plan has a target
    if wanted.kind != "latency":
        return TargetReport(report, allocation, None, None)
    chosen = allocation.by_layer()
    models = {
        name: SparseModel.from_packed(pack_model(watching.model, each), backend="cpu")
        for name, each in (("chosen", chosen), ("reference", dict.fromkeys(chosen, REFERENCE)))
    }
    seconds = measure_latency(models, shape, rounds=rounds)
    return TargetReport(report, allocation, seconds["chosen"], seconds["reference"])
