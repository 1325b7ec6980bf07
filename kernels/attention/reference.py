"""Self-attention over a stream of sequences without padding."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    qkv: Tensor,
    lengths: list[int],
    heads: int,
    scale: float,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """softmax(scale * Q K^T + bias) V for each sequence and head, one sequence after the other.

    Args:
        qkv: float [tokens, 3 * heads * head_size]: queries, keys and values side by side.
        lengths: tokens of each sequence, summing to ``tokens``.
        heads: number of attention heads.
        scale: multiplies the scores.
        bias: float [heads, span, span] added to the scores by query and key position, or None.
        positions: int64 [tokens], each token's position in ``bias``; only with ``bias``.

    Returns:
        float [tokens, heads * head_size].
    """
    outputs, start = [], 0
    for length in lengths:
        stop = start + length
        q, k, v = qkv[start:stop].unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        scores = torch.matmul(q, k.transpose(1, 2)) * scale
        if bias is not None and positions is not None:
            at = positions[start:stop]
            scores = scores + bias[:, at.unsqueeze(1), at].to(scores.dtype)
        context = torch.matmul(scores.softmax(-1), v)
        outputs.append(context.transpose(0, 1).flatten(1))
        start = stop
    return torch.cat(outputs) if outputs else qkv[:, : qkv.shape[1] // 3]
