"""What is decided on before layers are solved: channels, units that go, formats layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from ..statement import LinearQuantization
from .allocation import (
    Allocation,
    CostTable,
    Target,
    affordable,
    allocate,
    flop_costs,
    size_costs,
)
from .layer_format import LayerFormat
from .layerwise import Format
from .permutation import Kept, permute
from .plan_state import PlanState
from .sensitivity import SensitivityTable, sensitivity, units_of
from .smoothing import input_maxima, smooth
from .structured import StructuredReport, Tuning, prune_structured

Batches = Sequence[dict[str, Tensor]]
Measure = Callable[
    [nn.Module, Mapping[str, Sequence[str]], Sequence[LayerFormat], LayerFormat], CostTable
]
"""(model, units, formats, reference) -> what each choice costs; tools/layer_latency.py has one."""

CANDIDATES = ("dense int8", "2:4 int8", "dense int4", "2:4 int4")
EVALUATED = 4
"""Batches, about, on which outputs are compared."""

NOWHERE = PlanState(None)

REFERENCE = LayerFormat.parse("dense int8")
"""What relative targets are a share of."""


class Plan(Protocol):
    """Prepares a model, and says what each layer becomes.

    Attributes:
        removed: afterwards, which heads and neurons are left; None where all are.
    """

    removed: StructuredReport | None

    def __call__(
        self,
        model: nn.Module,
        batches: Batches,
        formats: Mapping[str, Format],
        state: PlanState,
    ) -> dict[str, Format]:
        """Change the model in place; the formats that were asked for come in, final ones go out."""

    def to_dict(self) -> dict[str, Any]:
        """What was asked for, as JSON."""

    def of_all_layers(self) -> list[str]:
        """What it does to every layer of the encoder, which no choice of layers narrows."""

    def crops(self) -> bool:
        """Whether patterns are those of what is left of layers without zero heads and neurons."""

    def values(self) -> set[str]:
        """Types of values that it may give to layers by itself."""

    def solved(self, stated: Mapping[str, LinearQuantization]) -> None:
        """Told how the layers with integer values are quantized in the end, by name."""


@dataclass
class SearchPlan:
    """Removes units, reorders and smooths channels, chooses formats for a target; in this order.

    Attributes:
        keep_flops: share of the multiply-adds to keep by removing heads and neurons, or None.
        tuning: what is fitted after that, see ``prune_structured``.
        reorder: permute channels for the pattern that layers get.
        smooth: even out channels of layers' inputs where no bit of a float result changes.
        target: what the layers may cost; None leaves the formats that were asked for.
        candidates: formats to choose from for a target.
        measure: costs for a latency target.
        conditions: under which ``measure`` measures, as JSON; a state directory holds a choice for
            the same ones alone.
        seed: of the searches.
        progress: show progress bars; None shows them where stderr is a terminal.
        removed: afterwards, what is left of each layer.
        kept: afterwards, what reordering gained.
        table: afterwards, what each choice changes.
        allocation: afterwards, the formats chosen for the target.
        stated: afterwards, how layers with integer values are quantized, by name.
    """

    keep_flops: float | None = None
    tuning: Tuning = "columns"
    reorder: bool = False
    smooth: bool = False
    target: Target | None = None
    candidates: tuple[LayerFormat, ...] = tuple(map(LayerFormat.parse, CANDIDATES))
    measure: Measure | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    progress: bool | None = None
    removed: StructuredReport | None = field(default=None, init=False)
    kept: list[Kept] = field(default_factory=list, init=False)
    table: SensitivityTable | None = field(default=None, init=False)
    allocation: Allocation | None = field(default=None, init=False)
    stated: dict[str, LinearQuantization] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.keep_flops is not None and not 0 < self.keep_flops <= 1:
            raise ValueError(
                f"keep_flops (--keep-flops) {self.keep_flops}: expected a share above 0 and at "
                "most 1"
            )
        if self.reorder and self.keep_flops is not None:
            raise ValueError(
                "permute: would spread the neurons that were removed, so that they could no longer "
                "be cropped; leave keep_flops (--keep-flops) or permute (--permute) out"
            )
        if self.target is not None and self.target.kind == "latency" and self.measure is None:
            raise ValueError(f"target {self.target}: needs measured costs; give measure")

    def to_dict(self) -> dict[str, Any]:
        """What was asked for."""
        tunes = self.keep_flops is not None and self.tuning != "none"
        # Without it, a state of before tuning had a teacher would go on with other weights.
        aim = {"tuned_towards": "units at the square root of keep_flops"} if tunes else {}
        return aim | {
            "keep_flops": self.keep_flops,
            "tuning": self.tuning,
            "permute": self.reorder,
            "smooth": self.smooth,
            "target": None if self.target is None else str(self.target),
            "candidates": [str(choice) for choice in self.candidates],
            "conditions": dict(self.conditions),
            "seed": self.seed,
        }

    def of_all_layers(self) -> list[str]:
        """As :class:`Plan` says; reordering is free of it, since it changes no output."""
        asked = {
            "target (--target)": self.target is not None,
            "keep_flops (--keep-flops)": self.keep_flops is not None,
            "smooth (--smooth)": self.smooth,
        }
        return [what for what, given in asked.items() if given]

    def crops(self) -> bool:
        """As :class:`Plan` says."""
        return self.keep_flops is not None or self.target is not None

    def values(self) -> set[str]:
        """As :class:`Plan` says."""
        return set() if self.target is None else {c.values.dtype for c in self.candidates}

    def solved(self, stated: Mapping[str, LinearQuantization]) -> None:
        """As :class:`Plan` says."""
        self.stated = dict(stated)

    def __call__(
        self,
        model: nn.Module,
        batches: Batches,
        formats: Mapping[str, Format],
        state: PlanState = NOWHERE,
    ) -> dict[str, Format]:
        """As :class:`Plan` says.

        Raises:
            ValueError: formats and a target at once; nothing to reorder for; or the target cannot
                be met.
        """
        if self.target is not None and formats:
            raise ValueError(
                f"target {self.target}: chooses the formats itself; leave to (--to) and values "
                "(--values) out, and give candidates (--formats)"
            )
        if self.keep_flops is not None:
            self.removed = prune_structured(
                model,
                batches,
                flops=self.keep_flops,
                tuning=self.tuning,
                seed=self.seed,
                progress=self.progress,
            )
        if self.reorder:
            self._reorder(model, formats)
        if self.smooth:
            smooth(model, input_maxima(model, batches, progress=self.progress))
        if self.target is None:
            return dict(formats)
        return self._allocate(model, batches, self.target, state)

    def _reorder(self, model: nn.Module, formats: Mapping[str, Format]) -> None:
        asked = [one.pattern for one in formats.values()] or [c.pattern for c in self.candidates]
        patterns = {p for p in asked if p is not None and p.structure.kind != "unstructured"}
        if len({str(pattern) for pattern in patterns}) != 1:
            raise ValueError(
                "permute: expected one N:M or block pattern to reorder channels for, got "
                f"{', '.join(sorted(map(str, patterns))) or 'none'}"
            )
        self.kept = permute(model, patterns.pop(), seed=self.seed, progress=self.progress)

    def _allocate(
        self, model: nn.Module, batches: Batches, target: Target, state: PlanState
    ) -> dict[str, Format]:
        units = units_of(model, fused=target.kind == "latency")
        chosen = state.allocation()
        costs = None if chosen is not None else self.costs(model, units, target)
        if costs is not None:
            # Sensitivities take minutes: a target that nothing meets is refused before.
            affordable(costs, target, units, self.candidates)
        self.table = sensitivity(
            model,
            batches,
            self.candidates,
            units=units,
            evaluation=compared(batches),
            known=state.rows(),
            keep=state.add,
            progress=self.progress,
        )
        if costs is not None:
            chosen = allocate(self.table, costs, target)
            state.choose(chosen)
        assert chosen is not None  # of the state, or by the costs
        self.allocation = chosen
        wanted = {name: choice.wanted for name, choice in self.allocation.by_layer().items()}
        # Where nothing is asked, all stays: solving would make up for other layers there.
        return {name: one for name, one in wanted.items() if one != Format(None, None)}

    def costs(
        self, model: nn.Module, units: Mapping[str, Sequence[str]], target: Target
    ) -> CostTable:
        """What each candidate costs in each unit, as the target counts it."""
        if target.kind == "latency":
            assert self.measure is not None  # checked when the plan was made
            return self.measure(model, units, self.candidates, REFERENCE)
        if target.kind == "size":
            return size_costs(model, units, self.candidates, REFERENCE)
        return flop_costs(model, units, self.candidates, REFERENCE)


def compared(batches: Batches) -> Batches:
    """Batches to compare outputs on: every choice is a pass over them.

    They are sorted by length, so some of each.
    """
    return batches[:: max(1, len(batches) // EVALUATED)]
