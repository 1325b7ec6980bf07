"""Self-attention over a stream of sequences without padding."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..linear.reference import Quantizer, quantize_static, requantize


def attention(
    qkv: Tensor,
    lengths: list[int],
    heads: int,
    scale: float,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> Tensor:
    """softmax(scale * Q K^T + bias) V for each sequence and head, one sequence after the other.

    Args:
        qkv: float [tokens, 3 * heads * head_size]: queries, keys and values side by side.
        lengths: tokens of each sequence, summing to ``tokens``.
        heads: number of attention heads.
        scale: multiplies the scores.
        bias: float [heads, span, span] added to the scores by query and key position, or None.
        positions: int64 [tokens], each token's position in ``bias``; only with ``bias``.
        quantizers: of the sides of the two products, "query", "key", "probabilities" and "value",
            and of their results, "scores" (before ``scale``) and "context"; what is not there stays
            float. With any of them everything is computed in float32. None is plain attention.

    Returns:
        float [tokens, heads * head_size], of qkv's type.
    """
    outputs, start = [], 0
    stream = qkv if quantizers is None else qkv.float()
    steps = {} if quantizers is None else quantizers
    for length in lengths:
        stop = start + length
        q, k, v = stream[start:stop].unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        scores = _product(q, k.transpose(1, 2), steps.get("query"), steps.get("key"))
        scores = requantize(scores, steps.get("scores")) * scale
        if bias is not None and positions is not None:
            at = positions[start:stop]
            scores = scores + bias[:, at.unsqueeze(1), at].to(scores.dtype)
        context = _product(scores.softmax(-1), v, steps.get("probabilities"), steps.get("value"))
        context = requantize(context, steps.get("context"))
        outputs.append(context.transpose(0, 1).flatten(1))
        start = stop
    return torch.cat(outputs).to(qkv.dtype) if outputs else qkv[:, : qkv.shape[1] // 3]


def _product(
    left: Tensor, right: Tensor, of_left: Quantizer | None, of_right: Quantizer | None
) -> Tensor:
    """``left^ @ right^``: integers are summed exactly, then ``float(sum) * left scale * right's``.

    With one quantized side, the floats that its quantizer gives back are multiplied.
    """
    if of_left is None or of_right is None:
        return torch.matmul(requantize(left, of_left), requantize(right, of_right))
    a = quantize_static(left, *of_left).double() - of_left.zero_point
    b = quantize_static(right, *of_right).double() - of_right.zero_point
    return torch.matmul(a, b).float() * of_left.scale * of_right.scale
