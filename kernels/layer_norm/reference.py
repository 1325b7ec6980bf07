"""LayerNorm over the features of each token, and what stands in its place without statistics."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """float [tokens, features] -> the same shape, normalized, scaled and shifted."""
    return F.layer_norm(x, (x.shape[1],), weight.to(x.dtype), bias.to(x.dtype), eps)


def no_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """float [tokens, features] scaled and shifted: MobileBERT's NoNorm (arXiv 2004.02984)."""
    return x * weight.to(x.dtype) + bias.to(x.dtype)
