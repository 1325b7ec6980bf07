"""Gradual second-order pruning (oBERT): least rise of the loss first, and the rest makes up for it.

Source: "The Optimal BERT Surgeon" (oBERT, arXiv 2203.07259). At each pruning event the Fisher
inverse is computed anew from gradients at the present weights (see :mod:`.fisher`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...masks import Mask, attach_masks, original_weight
from ...patterns import Pattern, global_masks
from ...schedules import CubicSparsity
from ...targets import COMPONENTS
from ..context import Training
from ..schema import WrongValue, require
from .base import Pruner, cubic, mask_metrics
from .fisher import FisherInverse, flat_order, matrix_order, matrix_saliency

if TYPE_CHECKING:
    from ..sections import Pruning

# Gradients that are added to the inverse in one pass over it.
_AT_ONCE = 16


@dataclass(frozen=True)
class ObertOptions:
    """Options of oBERT.

    Attributes:
        fisher_block: neighbouring weights whose interplay is known; memory is weights * this * 4
            bytes while an event lasts. For blocks a multiple of their size; at most a matrix.
        gradients: batches whose gradients make up the Fisher matrix.
        batch_size: examples of each.
        damp: added to its diagonal.
        floor: scope global only, share of its weights or blocks that each matrix keeps.
    """

    fisher_block: int = 50
    gradients: int = 1024
    batch_size: int = 16
    damp: float = 1e-7
    floor: float = 0.01

    def __post_init__(self) -> None:
        require(
            fisher_block=(self.fisher_block, self.fisher_block >= 1, "1 or more"),
            gradients=(self.gradients, self.gradients >= 1, "1 or more"),
            batch_size=(self.batch_size, self.batch_size >= 1, "1 or more"),
            damp=(self.damp, 0 < self.damp < math.inf, "a number above 0"),
            floor=(self.floor, 0 < self.floor <= 1, "a share above 0 and at most 1"),
        )


class ObertPruner(Pruner):
    """Prunes by second-order saliency on a cubic schedule; what is pruned stays pruned."""

    Options = ObertOptions
    follows_schedule = True
    ranks_together = True
    reads_gradients = (*COMPONENTS, "pooler")
    masks: dict[str, Mask]

    @classmethod
    def check(cls, settings: Pruning) -> None:
        """Blocks of weights fill the Fisher blocks."""
        super().check(settings)
        block = settings.options.fisher_block
        for key, pattern in settings.stated_patterns.items():
            size = pattern.structure.rows * pattern.structure.cols or 1
            if block % size:
                raise WrongValue(
                    "fisher_block",
                    f"{block} is no multiple of the {size} weights of a block of {pattern} ({key});"
                    f" expected one, for example {size * max(1, 32 // size)}",
                )

    @classmethod
    def check_model(
        cls,
        settings: Pruning,
        patterns: Mapping[str, Pattern],
        model: nn.Module,
        linears: Mapping[str, nn.Linear],
        steps: int,
    ) -> None:
        """A Fisher block is at most a matrix."""
        super().check_model(settings, patterns, model, linears, steps)
        block = settings.options.fisher_block
        largest = max(linears[name].weight.numel() for name in patterns)
        if block > largest:
            raise WrongValue(
                "fisher_block",
                f"expected at most the {largest} weights of the largest matrix, got {block}; "
                "memory is its square, for example 50",
            )

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Put masks that keep everything on the weights."""
        super().attach(model, linears, training)
        self.masks = attach_masks(self.linears)
        self._schedules: dict[Pattern, CubicSparsity] = {
            pattern: cubic(self.settings.schedule, pattern.final_sparsity, training.total_steps)
            for pattern in set(self.patterns.values())
        }

    def begin_step(self, step: int, total: int) -> None:
        """Prune where the schedule asks for more zeros than there are."""
        if any(
            schedule.is_update(step) and step <= self._last_change(schedule)
            for schedule in self._schedules.values()
        ):
            self._prune(step)

    def metrics(self) -> dict[str, float]:
        """Share of zeros over all matrices."""
        return mask_metrics(self.masks)

    def _last_change(self, schedule: CubicSparsity) -> int:
        """First update at which the final sparsity holds; later ones would change nothing."""
        updates = -(-(schedule.end - schedule.begin) // schedule.every)
        return min(schedule.begin + updates * schedule.every, schedule.last)

    def _prune(self, step: int) -> None:
        fishers = self._fishers(self.training.seed + step)
        scores = {}
        for name, mask in self.masks.items():
            weight = mask(original_weight(self.linears[name]).detach())
            saliency = matrix_saliency(weight, self.patterns[name].structure, fishers[name])
            scores[name] = torch.where(mask.mask, saliency, -1.0)
        for name, keep in self._keep(scores, step).items():
            mask, linear = self.masks[name], self.linears[name]
            keep = keep & mask.mask
            self._compensate(mask(original_weight(linear).detach()), keep, name, fishers.pop(name))
            mask.update(keep)

    def _keep(self, scores: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        if self.settings.scope == "global":
            pattern = self._at(next(iter(self._schedules)), step)
            floor = self.settings.options.floor
            return global_masks(scores, pattern, floor=floor, reduce="sum")
        return {
            name: self._at(self.patterns[name], step).mask(one, reduce="sum")
            for name, one in scores.items()
        }

    @torch.no_grad()
    def _compensate(self, weight: Tensor, keep: Tensor, name: str, fisher: FisherInverse) -> None:
        structure = self.patterns[name].structure
        # The edges of blocks are filled with False, which the weights there, 0, fit.
        flat = fisher.prune(flat_order(weight, structure), flat_order(keep, structure))
        moved = matrix_order(flat, structure, (weight.shape[0], weight.shape[1]))
        original_weight(self.linears[name]).copy_(moved)

    def _at(self, pattern: Pattern, step: int) -> Pattern:
        schedule = self._schedules[pattern]
        return pattern if step >= schedule.end else pattern.at(schedule.value(step))

    def _fishers(self, seed: int) -> dict[str, FisherInverse]:
        options = self.settings.options
        made = {
            name: FisherInverse(
                self._flat(name, original_weight(linear).detach()).numel(),
                block=options.fisher_block,
                damp=options.damp,
                device=original_weight(linear).device,
            )
            for name, linear in self.linears.items()
        }
        waiting: dict[str, list[Tensor]] = {name: [] for name in made}
        # A student that starts as its teacher has no gradients of the distance between them.
        batches = self.training.gradients(
            options.gradients, options.batch_size, seed, labels_alone=True
        )
        for count, _ in enumerate(batches, start=1):
            for name, linear in self.linears.items():
                gradient = original_weight(linear).grad
                assert gradient is not None  # Training.gradients has just computed it
                waiting[name].append(self._flat(name, gradient.detach().clone()))
            if count % _AT_ONCE == 0 or count == options.gradients:
                for name, fisher in made.items():
                    fisher.add(torch.stack(waiting[name]))
                    waiting[name].clear()
        return made

    def _flat(self, name: str, matrix: Tensor) -> Tensor:
        return flat_order(matrix, self.patterns[name].structure)
