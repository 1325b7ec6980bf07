"""Movement pruning: scores that are learned beside the weights decide what stays.

Source: "Movement Pruning: Adaptive Sparsity by Fine-Tuning" (arXiv 2005.07683); with its blocks,
"Block Pruning For Faster Transformers" (arXiv 2109.04838). A score S moves by the straight-through
gradient ``dL/dS = dL/dW_masked * W``: up where training moves the weight away from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

from ....formats.block import from_blocks, to_blocks
from ....formats.project import keep_largest
from ....spec import Structure
from ...masks import WeightTransform, transforms
from ...schedules import CubicSparsity
from ..context import Training
from ..schema import require
from .base import Pruner, cubic, mask_metrics

_SINGLE = Structure("unstructured")


class ScoredMask(WeightTransform):
    """Multiplies a weight with a mask, and passes gradients on to the weight and to its scores.

    Args:
        weight: that it is put on.
        structure: with blocks, one score is for a block; else for a weight.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, structure: Structure) -> None:
        super().__init__()
        self.structure = structure
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.scores = nn.Parameter(torch.zeros_like(_summed(weight.detach(), structure)))

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight [out, in]."""
        masked: Tensor = _StraightThrough.apply(weight, self.scores, self.mask, self.structure)
        return masked

    def spread_scores(self) -> Tensor:
        """Scores as a matrix [out, in]; a block's is at its first weight, the rest are 0."""
        scores = self.scores.detach()
        if self.structure.kind != "block":
            return scores
        size = self.structure.rows * self.structure.cols
        shape = (self.mask.shape[0], self.mask.shape[1])
        return from_blocks(pad(scores.unsqueeze(-1), (0, size - 1)), self.structure, shape)


class _StraightThrough(torch.autograd.Function):
    """w * mask; the scores get what the mask would get were it a factor like any other."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor, structure: Structure
    ) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.structure = structure
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        weight, mask = ctx.saved_tensors
        of_scores = _summed(gradient * weight, ctx.structure)
        return torch.where(mask, gradient, 0.0), of_scores, None, None


def _summed(matrix: Tensor, structure: Structure) -> Tensor:
    """Over each block, [block_rows, block_cols]; the matrix itself where there are none."""
    return to_blocks(matrix, structure).sum(-1) if structure.kind == "block" else matrix


def attach_scores(
    linears: Mapping[str, nn.Linear], structures: Mapping[str, Structure]
) -> dict[str, ScoredMask]:
    """Put masks with scores of 0 on the weights; what is zero stays zero only if scores say so.

    Raises:
        ValueError: a weight has a parametrization already.
    """
    attached = {}
    for name, linear in linears.items():
        if transforms(linear):
            raise ValueError(
                f"{name}: its weight has parametrizations already; movement pruning comes first, "
                "fake quantization after it"
            )
        attached[name] = ScoredMask(linear.weight, structures.get(name, _SINGLE))
        parametrize.register_parametrization(linear, "weight", attached[name])
    return attached


@dataclass(frozen=True)
class MovementOptions:
    """Options of movement pruning.

    Attributes:
        score_learning_rate: of the scores; the stage's schedule scales it as well.
    """

    score_learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        rate = self.score_learning_rate
        require(score_learning_rate=(rate, 0 < rate < math.inf, "a number above 0"))


class ScorePruner(Pruner):
    """What pruners with learned scores have in common."""

    learns_scores = True
    follows_schedule = True
    masks: dict[str, ScoredMask]

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The scores, without weight decay."""
        rate = self.settings.options.score_learning_rate
        scores = [mask.scores for mask in self.masks.values()]
        return [{"params": scores, "lr": rate, "weight_decay": 0.0}]

    def metrics(self) -> dict[str, float]:
        """Share of zeros over all matrices."""
        return mask_metrics(self.masks)


class MovementPruner(ScorePruner):
    """Keeps the top scores of each matrix, fewer and fewer on a cubic schedule ("top-K")."""

    Options = MovementOptions

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Add scores, which are not comparable between matrices."""
        super().attach(model, linears, training)
        self.masks = attach_scores(
            self.linears, {name: pattern.structure for name, pattern in self.patterns.items()}
        )
        self._schedules: dict[str, CubicSparsity] = {
            name: cubic(self.settings.schedule, pattern.final_sparsity, training.total_steps)
            for name, pattern in self.patterns.items()
        }

    def begin_step(self, step: int, total: int) -> None:
        """Move the masks where the schedule says so."""
        for name, mask in self.masks.items():
            schedule, pattern = self._schedules[name], self.patterns[name]
            if not schedule.is_update(step):
                continue
            if step < schedule.end:
                pattern = pattern.at(schedule.value(step))
            mask.mask.copy_(pattern.mask(mask.spread_scores(), reduce="sum"))

    def before_optimizer(self, step: int) -> None:
        """Scores rest with the masks, so that these stay the top of the scores."""
        for name, mask in self.masks.items():
            if step >= self._schedules[name].last:
                mask.scores.grad = None


@dataclass(frozen=True)
class SoftMovementOptions(MovementOptions):
    """Options of soft movement pruning.

    Attributes:
        threshold: a weight stays where sigmoid(score) is above it.
        regularization: final weight of the scores' penalty; it decides the sparsity.
        floor: share of its weights that each matrix keeps at least.
    """

    threshold: float = 0.1
    regularization: float = 400.0
    floor: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.regularization
        require(
            threshold=(self.threshold, 0 < self.threshold < 1, "a number between 0 and 1"),
            regularization=(weight, 0 <= weight < math.inf, "a number of 0 or more"),
            floor=(self.floor, 0 < self.floor <= 1, "a share above 0 and at most 1"),
        )


class SoftMovementPruner(ScorePruner):
    """Keeps weights whose score passes a threshold, against a penalty on all scores.

    Threshold and penalty grow together, cubically, over the schedule. The sparsity is what emerges.
    """

    Options = SoftMovementOptions
    needs_pattern = False

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Add scores."""
        super().attach(model, linears, training)
        self.masks = attach_scores(self.linears, {})
        # A "sparsity" of 1/2 at the end, so that value / (1/2) is the share of the way.
        self._schedule = cubic(self.settings.schedule, 0.5, training.total_steps)
        self._progress = 0.0

    def begin_step(self, step: int, total: int) -> None:
        """Move threshold, penalty and masks."""
        self._progress = self._schedule.value(step) / 0.5
        if not self._schedule.is_update(step):
            return
        options = self.settings.options
        for mask in self.masks.values():
            threshold = options.threshold * self._progress
            mask.mask.copy_(keep_above(mask.scores.detach(), threshold, options.floor))

    def before_optimizer(self, step: int) -> None:
        """Scores rest with the masks, so that these stay what the threshold says."""
        if step >= self._schedule.last:
            for mask in self.masks.values():
                mask.scores.grad = None

    def penalty(self) -> Tensor | None:
        """``regularization * mean over matrices of mean(sigmoid(scores))``, as far as grown."""
        weight = self.settings.options.regularization * self._progress
        if weight == 0:
            return None
        means = [torch.sigmoid(mask.scores).mean() for mask in self.masks.values()]
        return weight * torch.stack(means).mean()

    def state_dict(self) -> dict[str, Any]:
        """How far threshold and penalty have grown; masks and scores are in the model."""
        return {"progress": self._progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back :meth:`state_dict`'s form."""
        self._progress = float(state["progress"])


def keep_above(scores: Tensor, threshold: float, floor: float) -> Tensor:
    """``sigmoid(scores) > threshold``, or the highest ``floor`` of them where that keeps fewer.

    Args:
        scores: float [out, in].
        threshold: from 0 to below 1.
        floor: share that stays at least.

    Returns:
        bool [out, in].
    """
    keep = torch.sigmoid(scores) > threshold
    least = math.ceil(floor * scores.numel())
    if int(keep.sum()) >= least:
        return keep
    return keep_largest(scores.flatten(), least).view_as(scores)
