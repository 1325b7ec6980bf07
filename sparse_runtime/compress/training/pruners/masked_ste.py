"""A magnitude mask in every forward pass: the baselines that ADMM is compared with.

Sources: ASP, "Accelerating Sparse Deep Neural Networks" (arXiv 2104.08378), takes the mask once and
trains what is left. With ``every`` the mask follows the weights, and masked weights go on learning
by the straight-through gradient, as in "Learning N:M Fine-grained Structured Sparse Neural Networks
From Scratch" (arXiv 2102.04010) without its decay. Either with fake quantization is the masked
straight-through baseline of NxMiFormer (arXiv 2206.15014).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...masks import Mask, attach_masks, original_weight, transforms
from ..context import Training
from ..schema import require
from .base import Pruner, mask_metrics


class StraightMask(Mask):
    """A mask whose gradient reaches masked weights as if there were none."""

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight [out, in]."""
        masked: Tensor = _Masked.apply(weight, self.mask)
        return masked


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@dataclass(frozen=True)
class MaskedSteOptions:
    """Options of masked training.

    Attributes:
        every: steps after which the mask is taken anew from the trained weights; 0 keeps that of
            the beginning.
    """

    every: int = 0

    def __post_init__(self) -> None:
        require(every=(self.every, self.every >= 0, "steps, or 0 to keep the first mask"))


class MaskedStePruner(Pruner):
    """Masks by magnitude, matrix by matrix, at full sparsity from the first step on."""

    Options = MaskedSteOptions
    masks: dict[str, Mask]

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Take the first masks.

        Raises:
            ValueError: a weight has a parametrization already.
        """
        super().attach(model, linears, training)
        if self.settings.options.every == 0:
            self.masks = attach_masks(self.linears)
        else:
            self.masks = {name: _straight(name, linear) for name, linear in self.linears.items()}
        self._take()

    def begin_step(self, step: int, total: int) -> None:
        """Take the masks anew where it is time."""
        every = self.settings.options.every
        if every and step and step % every == 0:
            self._take()

    def metrics(self) -> dict[str, float]:
        """Share of zeros over all matrices."""
        return mask_metrics(self.masks)

    def _take(self) -> None:
        for name, linear in self.linears.items():
            weight = original_weight(linear).detach()
            self.masks[name].update(self.patterns[name].mask(weight.abs()))


def _straight(name: str, linear: nn.Linear) -> StraightMask:
    if transforms(linear):
        raise ValueError(
            f"{name}: its weight has parametrizations already; masked-ste comes first, fake "
            "quantization after it"
        )
    mask = StraightMask(torch.ones_like(linear.weight, dtype=torch.bool))
    parametrize.register_parametrization(linear, "weight", mask)
    return mask
