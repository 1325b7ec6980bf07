"""Gradual magnitude pruning, matrix by matrix or ranked over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...masks import Mask, attach_masks, original_weight
from ...patterns import Pattern, global_masks
from ...schedules import CubicSparsity
from ..context import Training
from ..schema import require
from .base import Pruner, cubic, mask_metrics


@dataclass(frozen=True)
class MagnitudeOptions:
    """Options of gradual magnitude pruning.

    Attributes:
        regrow: rank the trained weights, so that one that is pruned can come back (Prune Once For
            All); else those that are left, so that zeros stay (SparseBERT).
        floor: global scope only, share of its weights that each matrix keeps.
    """

    regrow: bool = True
    floor: float = 0.01

    def __post_init__(self) -> None:
        require(floor=(self.floor, 0 < self.floor <= 1, "a share above 0 and at most 1"))


class MagnitudePruner(Pruner):
    """Keeps the largest magnitudes, more and more sparse on a cubic schedule.

    Source: Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878.
    """

    Options = MagnitudeOptions
    follows_schedule = True
    ranks_together = True
    masks: dict[str, Mask]

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Put masks that keep everything on the weights."""
        super().attach(model, linears, training)
        self.masks = attach_masks(self.linears)
        self._schedules = {
            pattern: cubic(self.settings.schedule, pattern.final_sparsity, training.total_steps)
            for pattern in set(self.patterns.values())
        }

    def begin_step(self, step: int, total: int) -> None:
        """Move the masks where the schedule says so."""
        if any(schedule.is_update(step) for schedule in self._schedules.values()):
            self._update(step)

    def metrics(self) -> dict[str, float]:
        """Share of zeros over all matrices."""
        return mask_metrics(self.masks)

    def _update(self, step: int) -> None:
        scores = {name: self._scores(name) for name in self.masks}
        if self.settings.scope == "global":
            pattern = next(iter(self._schedules))
            masks = global_masks(scores, self._at(pattern, step), floor=self.settings.options.floor)
        else:
            masks = {
                name: self._at(self.patterns[name], step).mask(one) for name, one in scores.items()
            }
        for name, mask in masks.items():
            self.masks[name].update(mask)

    def _at(self, pattern: Pattern, step: int) -> Pattern:
        schedule: CubicSparsity = self._schedules[pattern]
        return pattern if step >= schedule.end else pattern.at(schedule.value(step))

    @torch.no_grad()
    def _scores(self, name: str) -> Tensor:
        weight = original_weight(self.linears[name]).detach()
        return weight.abs() if self.settings.options.regrow else self.masks[name](weight).abs()
