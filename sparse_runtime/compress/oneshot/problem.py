"""One layer's reconstruction: the quadratic that every solver minimises, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .factors import Factors
from .hessian import InputStatistics


@dataclass(frozen=True)
class Problem:
    """Find W of a given form with the least ``tr((W - target) hessian (W - target)^T)``.

    Attributes:
        target: [out, in], the weights that would give the outputs wanted, as nearly as weights
            without constraints can. Solvers compute in its dtype.
        hessian: float64 [in, in], positive definite.
        shared: the hessian's decompositions, where other problems have it too.
    """

    target: Tensor
    hessian: Tensor
    shared: Factors | None = None

    def __post_init__(self) -> None:
        features = self.target.shape[-1]
        if self.target.ndim != 2 or self.hessian.shape != (features, features):
            raise ValueError(
                f"problem: expected a target [out, in] and a hessian [in, in], got "
                f"{list(self.target.shape)} and {list(self.hessian.shape)}"
            )

    @cached_property
    def factors(self) -> Factors:
        """The hessian's decompositions."""
        return self.shared or Factors(self.hessian)

    def aimed_at(self, target: Tensor) -> Problem:
        """The same hessian with another target."""
        return Problem(target, self.hessian, self.factors)

    def error(self, weight: Tensor) -> float:
        """The objective, a mean square per token summed over outputs."""
        away = (weight - self.target).double()
        return float(((away @ self.hessian) * away).sum())

    def relative_error(self, weight: Tensor) -> float:
        """Root of the objective over that of the outputs themselves; 1 for a weight of zeros."""
        scale = self.error(torch.zeros_like(self.target))
        return (self.error(weight) / scale) ** 0.5 if scale > 0 else 0.0

    def inverse(self) -> Tensor:
        """float64 [in, in], the hessian's inverse.

        Raises:
            ValueError: the hessian is not positive definite.
        """
        return torch.cholesky_inverse(self.factors.lower)


@dataclass(frozen=True)
class Solution:
    """A weight of the form asked for.

    Attributes:
        weight: [out, in]; with integer values exactly ``integers * scale``, in float32.
        mask: bool [out, in], False where pruned.
        scales: float32 [scale_count], or None for float values.
    """

    weight: Tensor
    mask: Tensor
    scales: Tensor | None = None


def make_problem(
    name: str,
    weight: Tensor,
    statistics: InputStatistics,
    *,
    damping: float,
    centred: bool,
    corrected: bool = True,
) -> Problem:
    """The quadratic of one layer, whose target makes up for what its inputs have lost.

    Without ``statistics.cross`` the target is the weight itself. With it, the target is the damped
    least-squares answer to "which weights give the unchanged network's outputs from the inputs of
    the changed one": ``W + ((H + damping)^-1 X^T D)^T``.

    Args:
        name: the layer's name in ``statistics.cross``.
        weight: float [out, in].
        statistics: of the layer's inputs.
        damping: share of the hessian's mean diagonal.
        centred: whether the bias is free to follow (see :func:`bias_shift`).
        corrected: False aims at the weight itself in any case, and decomposes nothing.
    """
    factors = statistics.factors(damping, centred=centred)
    target = weight.detach().float()
    if corrected and name in statistics.cross:
        cross = statistics.cross[name] / statistics.count
        if centred:
            cross = cross - torch.outer(statistics.mean, statistics.shift[name] / statistics.count)
        step = torch.cholesky_solve(cross, factors.lower)
        target = target + step.T.float()
    return Problem(target, factors.hessian, factors)


def bias_shift(name: str, before: Tensor, after: Tensor, statistics: InputStatistics) -> Tensor:
    """What to add to a bias so that the mean output stays what it should be, float64 [out].

    Args:
        name: the layer's name in ``statistics.shift``.
        before: float [out, in], the weight that the statistics were gathered with.
        after: float [out, in], the new weight.
        statistics: of the layer's inputs.
    """
    shift = (before.double() - after.double()) @ statistics.mean
    if name in statistics.shift:
        shift = shift + statistics.shift[name] / statistics.count
    return shift
