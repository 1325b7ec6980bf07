"""prune() towards a target: formats chosen layer by layer, costs measured by this runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..compress.oneshot.activation_ranges import RangeMethod
from ..compress.oneshot.allocation import Allocation, CostTable, Target, amount_text
from ..compress.oneshot.layer_format import SOME_RANGE, LayerFormat
from ..compress.oneshot.layerwise import Format
from ..compress.oneshot.plan_state import PlanState
from ..compress.oneshot.plans import NOWHERE, REFERENCE, Batches, SearchPlan
from ..compress.oneshot.prune import prune
from ..compress.oneshot.report import PruneReport
from ..compress.oneshot.sensitivity import SensitivityTable
from ..compress.oneshot.sensitivity_files import short_name
from ..encoders import SparseModel
from ..formats import Compression
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
        sensitivity: what each choice changes, from which formats were chosen.
        measured: latency only, seconds of the finished model; None otherwise.
        reference: latency only, seconds of the same model in dense INT8, in the same run.
    """

    prune: PruneReport
    allocation: Allocation
    sensitivity: SensitivityTable
    measured: float | None
    reference: float | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        seconds = {"measured_seconds": self.measured, "dense_int8_seconds": self.reference}
        found = self.allocation.to_dict() | {"sensitivity": self.sensitivity.to_dict()}
        return self.prune.to_dict() | {"target": found | seconds}

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
        self,
        model: nn.Module,
        batches: Batches,
        formats: Mapping[str, Format],
        state: PlanState = NOWHERE,
    ) -> dict[str, Format]:
        self.model = model
        return super().__call__(model, batches, formats, state)


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
    activations: str = "auto",
    ranges: RangeMethod | None = None,
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
        activations: as for ``prune``; latency is measured so.
        ranges: as for ``prune``; latency is measured with one scale for all tokens.
        options: of ``prune``.

    Raises:
        ValueError: as ``prune`` does; or the target cannot be met, with what the cheapest costs.
    """
    wanted = Target.parse(target)
    asked = Compression.parse(activations=activations).activations
    inputs = asked if ranges is None else SOME_RANGE

    def measure(
        model: nn.Module,
        units: Mapping[str, Sequence[str]],
        choices: Sequence[LayerFormat],
        reference: LayerFormat,
    ) -> CostTable:
        return latency_costs(model, units, choices, reference, shape, inputs=inputs, rounds=rounds)

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
        conditions={
            "shape": [shape.batch, shape.seq],
            "rounds": rounds,
            "threads": torch.get_num_threads(),
        }
        if wanted.kind == "latency"
        else {},
    )
    report = prune(
        source,
        out_dir,
        calibration=calibration,
        plan=watching,
        activations=activations,
        ranges=ranges,
        **options,
    )
    allocation, table = watching.allocation, watching.table
    assert allocation is not None and table is not None  # the plan has a target
    if wanted.kind != "latency":
        return TargetReport(report, allocation, table, None, None)
    chosen = allocation.by_layer()
    stated = {name: one.activations for name, one in watching.stated.items()}
    models = {
        "chosen": pack_model(watching.model, chosen, stated),
        "reference": pack_model(
            watching.model, dict.fromkeys(chosen, REFERENCE), inputs, solved=False
        ),
    }
    ready = {name: SparseModel.from_packed(one, backend="cpu") for name, one in models.items()}
    seconds = measure_latency(ready, shape, rounds=rounds)
    return TargetReport(report, allocation, table, seconds["chosen"], seconds["reference"])
