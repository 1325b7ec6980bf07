"""Attention biases by the distance of two tokens, as in T5 and MPNet."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FARTHEST = 128


def attention_bias(table: Tensor, span: int) -> Tensor:
    """Spread a table of biases by distance over all pairs of columns.

    Args:
        table: float [buckets, heads].
        span: number of columns.

    Returns:
        float [heads, span, span] by query and key column.
    """
    columns = torch.arange(span, device=table.device)
    distance = columns.unsqueeze(0) - columns.unsqueeze(1)
    return table[_bucket(distance, table.shape[0])].permute(2, 0, 1).contiguous()


def _bucket(distance: Tensor, buckets: int) -> Tensor:
    """Bucket of each signed distance, key minus query.

    Half of the buckets for each direction; of these, half hold one distance each and the others
    grow by a constant factor up to ``_FARTHEST`` (Raffel et al. 2020, section 2.1).
    """
    half = buckets // 2
    exact = half // 2
    length = distance.abs()
    # The clamp keeps log(0) out of the branch that short distances do not take.
    growth = torch.log(length.clamp_min(1).float() / exact) / math.log(_FARTHEST / exact)
    far = (exact + (growth * (half - exact)).to(torch.int64)).clamp_max(half - 1)
    return (distance > 0) * half + torch.where(length < exact, length, far)
