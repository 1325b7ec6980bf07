"""Reweighted group lasso: whole groups of weights are pushed to zero, weak ones the hardest.

Source: "Efficient Transformer-based Large Scale Language Representations using Hardware-friendly
Block Structured Pruning" (arXiv 2009.08065). With groups g of a weight::

    loss + regularization * sum over g of P_g ||W_g||,   P_g = 1 / (||W_g|| + eps)

where P is estimated anew at milestones. Then the weakest groups go, the mask is frozen, and what is
left is trained without the penalty. Groups are the blocks of a structure: ``block:1xL`` and
``block:Lx1`` are the paper's rows and columns of sub-matrices, ``block:RxC`` is any block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ....formats.block import from_blocks, to_blocks
from ....spec import Structure
from ...masks import Mask, attach_masks, original_weight
from ...patterns import global_masks
from ..context import Training
from ..schema import WrongValue, require
from .base import Pruner, mask_metrics

if TYPE_CHECKING:
    from ..sections import Pruning

Reweighting = Literal["norm", "square"]


@dataclass(frozen=True)
class GroupLassoOptions:
    """Options of reweighted group lasso.

    Attributes:
        regularization: weight of the penalty.
        by: "gradient" adds the penalty to the loss; "proximal" shrinks groups after each optimizer
            step, by the learning rate times the penalty's slope, which gives exact zeros.
        reweighting: "norm" is ``P = 1 / (||W|| + eps)``, "square" is ``1 / (||W||^2 + eps)``.
        eps: in P.
        milestones: how many times P is estimated, evenly over the regularised steps.
        until: share of the stage's steps at which groups are removed and the penalty ends.
        floor: scope global only, share of its groups that each matrix keeps.
    """

    regularization: float = 1e-3
    by: Literal["gradient", "proximal"] = "gradient"
    reweighting: Reweighting = "norm"
    eps: float = 1e-3
    milestones: int = 3
    until: float = 0.5
    floor: float = 0.01

    def __post_init__(self) -> None:
        weight = self.regularization
        require(
            regularization=(weight, 0 <= weight < math.inf, "a number of 0 or more"),
            eps=(self.eps, 0 < self.eps < math.inf, "a number above 0"),
            milestones=(self.milestones, self.milestones >= 1, "1 or more"),
            until=(self.until, 0 < self.until < 1, "a share of the steps between 0 and 1"),
            floor=(self.floor, 0 < self.floor <= 1, "a share above 0 and at most 1"),
        )


def group_norms(weight: Tensor, structure: Structure) -> Tensor:
    """L2 norm of each block, [block_rows, block_cols]."""
    return torch.linalg.vector_norm(to_blocks(weight, structure), dim=-1)


def reweighted(norms: Tensor, eps: float, reweighting: Reweighting) -> Tensor:
    """P of each group: ``1 / (norm + eps)`` or ``1 / (norm^2 + eps)``."""
    return 1 / ((norms if reweighting == "norm" else norms.square()) + eps)


def shrunk(weight: Tensor, structure: Structure, amounts: Tensor) -> Tensor:
    """Each group's norm made smaller by an amount, down to exact zeros.

    The proximal step of group lasso: ``max(0, 1 - amount / ||W_g||) W_g`` minimises
    ``1/2 ||V - W_g||^2 + amount ||V||`` over V.

    Args:
        weight: float [out, in].
        structure: block.
        amounts: float [block_rows, block_cols], at least 0.

    Returns:
        [out, in].
    """
    blocks = to_blocks(weight, structure)
    norms = torch.linalg.vector_norm(blocks, dim=-1)
    factors = torch.where(norms > amounts, 1 - amounts / norms, 0.0)
    # Not a product where a group goes: 0 times a negative number is -0.
    kept = torch.where(factors.unsqueeze(-1) > 0, blocks * factors.unsqueeze(-1), 0.0)
    return from_blocks(kept, structure, (weight.shape[0], weight.shape[1]))


class GroupLassoPruner(Pruner):
    """Regularises groups, removes the weakest, and trains what is left under a frozen mask."""

    Options = GroupLassoOptions
    ranks_together = True
    masks: dict[str, Mask]

    @classmethod
    def check(cls, settings: Pruning) -> None:
        """Groups are blocks."""
        super().check(settings)
        for key, pattern in settings.stated_patterns.items():
            if pattern.structure.kind != "block":
                raise WrongValue(
                    key,
                    f"'{pattern}': group lasso works on groups of weights; expected "
                    "block:RxC@SPARSITY, for example block:1x4@0.8",
                )

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Put masks that keep everything on the weights."""
        super().attach(model, linears, training)
        self.masks = attach_masks(self.linears)
        steps = round(self.settings.options.until * training.total_steps)
        self._removal = min(max(1, steps), training.total_steps - 1)
        self._weights: dict[str, Tensor] = {}

    def begin_step(self, step: int, total: int) -> None:
        """Estimate P at milestones; remove groups when it is time."""
        options = self.settings.options
        if step == self._removal:
            self._remove()
        elif step < self._removal and any(
            step == i * self._removal // options.milestones for i in range(options.milestones)
        ):
            self._weights = {
                name: reweighted(self._norms(name).detach(), options.eps, options.reweighting)
                for name in self.linears
            }

    def penalty(self) -> Tensor | None:
        """``regularization * sum P ||W||``, by gradient and while it lasts."""
        options = self.settings.options
        if options.by != "gradient" or not self._weights or options.regularization == 0:
            return None
        sums = [(weights * self._norms(name)).sum() for name, weights in self._weights.items()]
        return options.regularization * torch.stack(sums).sum()

    @torch.no_grad()
    def end_step(self, step: int) -> None:
        """Shrink groups, by proximal step and while it lasts."""
        options = self.settings.options
        if options.by != "proximal":
            return
        size = self.training.learning_rate * options.regularization
        for name, weights in self._weights.items():
            weight = original_weight(self.linears[name])
            weight.copy_(shrunk(weight, self._structure(name), size * weights))

    def metrics(self) -> dict[str, float]:
        """Shares of masked weights and of groups that are exactly zero."""
        gone = [self._norms(name).detach() == 0 for name in self.linears]
        share = sum(int(one.sum()) for one in gone) / sum(one.numel() for one in gone)
        return {**mask_metrics(self.masks), "zero_groups": share}

    def state_dict(self) -> dict[str, Any]:
        """P by name; empty before the first milestone and after the removal."""
        return {"weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back :meth:`state_dict`'s form."""
        self._weights = {
            name: weights.to(original_weight(self.linears[name]).device)
            for name, weights in state["weights"].items()
        }

    def _structure(self, name: str) -> Structure:
        return self.patterns[name].structure

    def _norms(self, name: str) -> Tensor:
        return group_norms(original_weight(self.linears[name]), self._structure(name))

    def _remove(self) -> None:
        scores = {
            name: original_weight(linear).detach().abs() for name, linear in self.linears.items()
        }
        if self.settings.scope == "global":
            pattern = next(iter(self.patterns.values()))
            masks = global_masks(scores, pattern, floor=self.settings.options.floor)
        else:
            masks = {name: self.patterns[name].mask(one) for name, one in scores.items()}
        for name, mask in masks.items():
            self.masks[name].update(mask)
        self._weights = {}
