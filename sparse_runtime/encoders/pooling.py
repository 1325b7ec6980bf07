"""Token embeddings -> one embedding of a sentence, as sentence-transformers' Pooling does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _first(tokens: Tensor, mask: Tensor) -> Tensor:
    return _take(tokens, mask.to(torch.uint8).argmax(1))


def _last(tokens: Tensor, mask: Tensor) -> Tensor:
    from_the_end = mask.flip(1).to(torch.uint8).argmax(1)
    return _take(tokens, mask.shape[1] - 1 - from_the_end)


def _take(tokens: Tensor, columns: Tensor) -> Tensor:
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), columns]


def _largest(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.masked_fill(~mask.unsqueeze(2), -torch.inf).amax(1)


def _sum(tokens: Tensor, mask: Tensor) -> Tensor:
    return (tokens * mask.unsqueeze(2)).sum(1, dtype=torch.float32)


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    return _sum(tokens, mask) / mask.sum(1, keepdim=True)


def _mean_sqrt_len(tokens: Tensor, mask: Tensor) -> Tensor:
    return _sum(tokens, mask) / mask.sum(1, keepdim=True).sqrt()


def _weighted_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Weights 1, 2, 3, ... by column, from the first real token on."""
    first = mask.to(torch.uint8).argmax(1, keepdim=True)
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    weights = ((columns - first) * mask).float()
    total = (tokens.float() * weights.unsqueeze(2)).sum(1)
    return total / weights.sum(1, keepdim=True)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""By the names of sentence-transformers, in the order in which several are joined."""


def pool(tokens: Tensor, mask: Tensor, modes: tuple[str, ...]) -> Tensor:
    """Pool each sentence's tokens in one or more ways, results side by side.

    Args:
        tokens: float [sentences, columns, features], zeros where masked.
        mask: bool [sentences, columns], at least one token a sentence.
        modes: keys of ``POOLINGS``.

    Returns:
        float [sentences, features * modes], in the dtype of ``tokens``.
    """
    return torch.cat([POOLINGS[mode](tokens, mask).to(tokens.dtype) for mode in modes], dim=1)
