"""A format for each layer that meets a target at the least change of the outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .channels import ALL, live_channels
from .knapsack import choose_options
from .layer_format import LayerFormat
from .sensitivity import SensitivityTable

Kind = Literal["size", "flops", "latency"]

_TARGET = re.compile(r"(?P<kind>size|flops|latency)=(?P<number>[0-9.]+)(?P<unit>x|MB|KB|ms|us)?")
_UNITS = {
    "MB": ("size", 1e6),
    "KB": ("size", 1e3),
    "ms": ("latency", 1e-3),
    "us": ("latency", 1e-6),
}


@dataclass(frozen=True)
class Target:
    """What the layers may cost together. Build it with :meth:`parse`.

    Attributes:
        kind: "size", bytes of the packed weights; "flops", two for each weight that is kept and
            token; "latency", seconds of a whole forward pass, measured.
        amount: a share of what the reference costs where ``relative``, else bytes or seconds.
        relative: whether it is a share.
    """

    kind: Kind
    amount: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read "latency=0.6x", "latency=3ms", "size=0.5x", "size=6MB" or "flops=0.5x".

        Raises:
            ValueError: for any other text.
        """
        match = _TARGET.fullmatch(text.replace(" ", ""))
        problem = ValueError(
            f"target {text!r}: expected 'latency=0.6x', 'latency=3ms', 'size=0.5x', 'size=6MB' or "
            "'flops=0.5x'"
        )
        if match is None:
            raise problem
        try:
            number = float(match["number"])
        except ValueError:
            raise problem from None
        kind, unit = match["kind"], match["unit"]
        fits = unit == "x" or (unit in _UNITS and _UNITS[unit][0] == kind)
        if not number > 0 or not fits:
            raise problem
        if unit == "x":
            return cls(kind, number, True)  # type: ignore[arg-type]
        return cls(kind, number * _UNITS[unit][1], False)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.relative:
            return f"{self.kind}={self.amount:.15g}x"
        if self.kind == "size":
            return f"size={self.amount / 1e6:.15g}MB"
        return f"{self.kind}={self.amount * 1e3:.15g}ms"


@dataclass(frozen=True)
class Shape:
    """Of the batches that are timed: full sequences, no padding."""

    batch: int
    seq: int


@dataclass(frozen=True)
class CostTable:
    """What each choice costs.

    Attributes:
        kind: of the numbers.
        fixed: what is spent whatever is chosen: for latency, everything but the linear layers.
        units: unit -> format -> cost.
        reference: the format that relative targets are a share of.
    """

    kind: Kind
    fixed: float
    units: Mapping[str, Mapping[LayerFormat, float]]
    reference: LayerFormat

    def total(self, chosen: Mapping[str, LayerFormat]) -> float:
        """Cost of the whole with these formats."""
        return self.fixed + sum(self.units[unit][choice] for unit, choice in chosen.items())

    def budget(self, target: Target) -> float:
        """The target as an amount.

        Raises:
            ValueError: it is of another kind.
        """
        if target.kind != self.kind:
            raise ValueError(f"target {target}: the costs at hand are of {self.kind}")
        if not target.relative:
            return target.amount
        return target.amount * self.total(dict.fromkeys(self.units, self.reference))


@dataclass(frozen=True)
class Allocation:
    """A format for each unit.

    Attributes:
        formats: unit -> format.
        error: sum of the choices' errors.
        cost: of the whole, predicted.
        budget: what it was held to.
        kind: of cost and budget.
    """

    formats: dict[str, LayerFormat]
    error: float
    cost: float
    budget: float
    kind: Kind

    def by_layer(self) -> dict[str, LayerFormat]:
        """Layer name -> format."""
        return {name: choice for unit, choice in self.formats.items() for name in unit.split(" + ")}

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "kind": self.kind,
            "budget": self.budget,
            "cost": self.cost,
            "error": self.error,
            "formats": {unit: str(choice) for unit, choice in self.formats.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Allocation:
        """Read :meth:`to_dict`'s form."""
        formats = {unit: LayerFormat.parse(text) for unit, text in data["formats"].items()}
        return cls(formats, data["error"], data["cost"], data["budget"], data["kind"])


def allocate(table: SensitivityTable, costs: CostTable, target: Target) -> Allocation:
    """Choose a format for each unit: the least sum of errors that the target allows.

    Errors of single layers are taken to add up. The choice is the best there is but for rounding:
    each cost is rounded up to a 20,000th of the budget (:func:`~.knapsack.choose_options`).

    Args:
        table: errors of every unit and format.
        costs: of the same.
        target: what the whole may cost.

    Raises:
        ValueError: the table and the costs name different choices, or nothing meets the target;
            says what the cheapest choice costs.
    """
    units, formats = table.units, table.formats
    missing = [
        f"{unit}: {choice}"
        for unit in units
        for choice in formats
        if choice not in costs.units.get(unit, {})
    ]
    if missing:
        raise ValueError(f"costs: nothing is known of {missing[0]} and {len(missing) - 1} others")
    budget = affordable(costs, target, units, formats)
    priced = [[costs.units[unit][choice] for choice in formats] for unit in units]
    errors = [[table.error(unit, choice) for choice in formats] for unit in units]
    picked = choose_options(errors, priced, budget - costs.fixed)
    chosen = {unit: formats[option] for unit, option in zip(units, picked, strict=True)}
    error = sum(table.error(unit, choice) for unit, choice in chosen.items())
    return Allocation(chosen, error, costs.total(chosen), budget, costs.kind)


def affordable(
    costs: CostTable, target: Target, units: Iterable[str], formats: Sequence[LayerFormat]
) -> float:
    """The budget, if the cheapest of the formats stay within it; needs no errors.

    Raises:
        ValueError: they do not; says what they cost.
    """
    budget = costs.budget(target)
    least = costs.fixed + sum(min(costs.units[unit][f] for f in formats) for unit in units)
    if least > budget:
        cheapest, allowed = (amount_text(amount, costs.kind) for amount in (least, budget))
        raise ValueError(
            f"target {target}: the cheapest formats of all layers cost {cheapest} and {allowed} "
            "are allowed; allow more, or add sparser formats"
        )
    return budget


def size_costs(
    model: nn.Module,
    units: Iterable[str],
    formats: Sequence[LayerFormat],
    reference: LayerFormat,
) -> CostTable:
    """Bytes of the packed weights as ``convert`` crops them: values, index, scales; no biases.

    At most: zeros of the source that solving may fill are counted as filled.
    """
    return _static_costs(model, units, formats, reference, "size")


def flop_costs(
    model: nn.Module,
    units: Iterable[str],
    formats: Sequence[LayerFormat],
    reference: LayerFormat,
) -> CostTable:
    """Two operations a token for each weight that a pattern keeps of what ``convert`` crops."""
    return _static_costs(model, units, formats, reference, "flops")


def _static_costs(
    model: nn.Module,
    units: Iterable[str],
    formats: Sequence[LayerFormat],
    reference: LayerFormat,
    kind: Kind,
) -> CostTable:
    live = live_channels(model)

    def cost(unit: str, choice: LayerFormat) -> float:
        names = unit.split(" + ")
        weights = [live.get(n, ALL).of(model.get_parameter(f"{n}.weight")) for n in names]
        if kind == "size":
            return float(sum(choice.pack_unsolved(one.detach()).size().total for one in weights))
        return sum(2.0 * choice.density * weight.numel() for weight in weights)

    priced = dict.fromkeys([*formats, reference])
    return CostTable(kind, 0.0, {u: {f: cost(u, f) for f in priced} for u in units}, reference)


def amount_text(cost: float, kind: Kind) -> str:
    """A cost with its unit."""
    if kind == "size":
        return f"{cost / 1e6:.3f} MB"
    return f"{cost * 1e3:.3f} ms" if kind == "latency" else f"{cost / 1e6:.1f} MFLOP a token"
