"""LayerNorm over the features of each token."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """float [tokens, features] -> the same shape, normalized, scaled and shifted."""
    return F.layer_norm(x, (x.shape[1],), weight.to(x.dtype), bias.to(x.dtype), eps)
