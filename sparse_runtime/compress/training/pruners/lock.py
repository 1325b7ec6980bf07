"""Pattern lock: what is zero at the beginning stays zero."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...masks import Mask, lock_masks
from ..context import Training
from .base import Pruner, mask_metrics


class LockPruner(Pruner):
    """Keeps the zeros that the model starts with.

    Source: Zafrir et al., "Prune Once for All", arXiv 2111.05754, pattern-lock.
    """

    needs_pattern = False
    masks: dict[str, Mask]

    def attach(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], training: Training
    ) -> None:
        """Mask what is zero now."""
        super().attach(model, linears, training)
        self.masks = lock_masks(model, self.linears)

    def metrics(self) -> dict[str, float]:
        """Share of zeros over all matrices."""
        return mask_metrics(self.masks)
