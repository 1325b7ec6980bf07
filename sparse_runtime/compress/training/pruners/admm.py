"""ADMM: train a dense weight while pulling it towards the nearest matrix of a constraint.

Source: NxMiFormer (arXiv 2206.15014) and NxMTransformer. To minimise the loss of W under "W is of
the pattern": a copy Z that is of it, a scaled dual U that sums up how far W is from it, and::

    loss + rho / 2 ||W - Z + U||^2      in every step
    Z = Proj(W + U), U = U + W - Z      once an epoch
    W = Proj(W)                         at the end
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....spec import INTEGER_RANGES, ValueSpec
from ...masks import lock_masks, original_weight
from ..context import Training
from ..schema import WrongValue, require
from .base import Pruner
from .projections import Projection, Scale, projection

if TYPE_CHECKING:
    from ..sections import Pruning


class Splitting:
    """Z and U of one matrix.

    Args:
        weight: W as training begins, float [out, in].
        project: nearest matrix of the constraint.
    """

    def __init__(self, weight: Tensor, project: Projection) -> None:
        self.project = project
        self.dual = torch.zeros_like(weight)
        self.copy = torch.zeros_like(weight)
        self.update(weight)

    @torch.no_grad()
    def update(self, weight: Tensor) -> None:
        """``Z = Proj(W + U)``, then ``U = U + W - Z``."""
        pulled = weight.detach() + self.dual
        self.copy = self.project(pulled)
        self.dual = pulled - self.copy

    def distance(self, weight: Tensor) -> Tensor:
        """``1/2 ||W - Z + U||^2``, a scalar; its gradient is ``W - Z + U``."""
        return 0.5 * (weight - (self.copy - self.dual)).square().sum()

    @torch.no_grad()
    def residual(self, weight: Tensor) -> float:
        """``||W - Z|| / ||W||``: 0 where the weight is of the constraint."""
        return float((weight - self.copy).norm() / weight.norm().clamp_min(1e-30))


@dataclass(frozen=True)
class AdmmOptions:
    """Options of ADMM.

    Attributes:
        rho: how hard weights are pulled.
        updates: of Z and U an epoch.
        values: "int8" or "int4" projects onto integers as well, after the pattern; null leaves
            numbers to a fake quantization of the stage, which trains them straight through.
        scales: weights that share a scale: "tensor", "row", "chunk:R" or "group:G".
        scale: "max", or "search" for the scale of the least squared error.
    """

    rho: float = 1e-3
    updates: int = 1
    values: str | None = None
    scales: str = "chunk:32"
    scale: Scale = "max"

    def __post_init__(self) -> None:
        integers = self.values in (*INTEGER_RANGES, None)
        require(
            rho=(self.rho, 0 < self.rho < math.inf, "a number above 0"),
            updates=(self.updates, self.updates >= 1, "1 or more"),
            values=(self.values, integers, "int8, int4 or null"),
        )
        try:
            ValueSpec.parse("int8", self.scales)
        except ValueError:
            raise WrongValue(
                "scales",
                f"{self.scales!r}: expected tensor, row, chunk:R or group:G, for example chunk:32",
            ) from None

    @property
    def value_spec(self) -> ValueSpec | None:
        """What ``values`` and ``scales`` say together."""
        return None if self.values is None else ValueSpec.parse(self.values, self.scales)


class AdmmPruner(Pruner):
    """ADMM towards a pattern, or a pattern of integers.

    Weights are dense until ``finish`` projects them.
    """

    Options = AdmmOptions
    splittings: dict[str, Splitting]

    @classmethod
    def check(cls, settings: Pruning) -> None:
        """Scales are of integers."""
        super().check(settings)
        options, usual = settings.options, cls.Options()
        for key in ("scales", "scale") if options.values is None else ():
            value, common = getattr(options, key), getattr(usual, key)
            expected = f"{common}, for it belongs to values int8 or int4"
            require(**{key: (value, value == common, expected)})

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Begin with ``U = 0``, and a first update."""
        super().attach(model, linears, training)
        self.splittings = {
            name: Splitting(original_weight(linear).detach(), self._projection(name))
            for name, linear in self.linears.items()
        }

    def begin_step(self, step: int, total: int) -> None:
        """Update Z and U at the end of each epoch, or of each of its parts."""
        if step == 0:
            return
        updates, length = self.settings.options.updates, self.training.steps_per_epoch
        # Part i of an epoch begins at i * length // updates, rounded up.
        part = step % length * updates // length
        before = (step - 1) % length * updates // length
        if part != before or step % length == 0:
            for name, splitting in self.splittings.items():
                splitting.update(original_weight(self.linears[name]))

    def penalty(self) -> Tensor:
        """``rho / 2 ||W - Z + U||^2`` over all matrices."""
        parts = [
            splitting.distance(original_weight(self.linears[name]))
            for name, splitting in self.splittings.items()
        ]
        return self.settings.options.rho * torch.stack(parts).sum()

    @torch.no_grad()
    def finish(self) -> None:
        """``W = Proj(W)``."""
        for name, splitting in self.splittings.items():
            weight = original_weight(self.linears[name])
            weight.copy_(splitting.project(weight.detach()))

    def metrics(self) -> dict[str, float]:
        """Mean of the residuals, as "admm_residual"."""
        residuals = [
            splitting.residual(original_weight(self.linears[name]))
            for name, splitting in self.splittings.items()
        ]
        return {"admm_residual": sum(residuals) / len(residuals)}

    def state_dict(self) -> dict[str, Any]:
        """Z and U by name."""
        return {name: {"copy": one.copy, "dual": one.dual} for name, one in self.splittings.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back :meth:`state_dict`'s form."""
        for name, one in self.splittings.items():
            weight = original_weight(self.linears[name])
            one.copy = state[name]["copy"].to(weight.device)
            one.dual = state[name]["dual"].to(weight.device)

    def _projection(self, name: str) -> Projection:
        pattern, options = self.patterns[name], self.settings.options
        # N:M states its own sparsity, which formats.project does not take again.
        sparsity = None if pattern.structure.kind == "nm" else pattern.sparsity
        return projection(pattern.structure, sparsity, options.value_spec, options.scale)


class AdmmIntegersPruner(AdmmPruner):
    """ADMM towards integers alone, dense or with the zeros that weights start with."""

    needs_pattern = False

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Mask what is zero now."""
        super().attach(model, linears, training)
        lock_masks(model, self.linears)

    @classmethod
    def check(cls, settings: Pruning) -> None:
        """Integers must be stated."""
        super().check(settings)
        if settings.options.values is None:
            raise WrongValue("values", "method admm-integers needs int8 or int4")

    def _projection(self, name: str) -> Projection:
        options = self.settings.options
        return projection(None, None, options.value_spec, options.scale)
