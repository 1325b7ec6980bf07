"""Taking padding away and putting it back, in plain PyTorch: what the kernels must reproduce."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .operands import INT64_HIGHEST, INT64_LOWEST, Padded, Stream

POOLINGS: tuple[str, ...] = (
    "cls",
    "max",
    "mean",
    "mean_sqrt_len_tokens",
    "weightedmean",
    "lasttoken",
)


def positions_of(padded: Padded, padding_id: int | None) -> Tensor:
    """int64 [batch, columns]: given positions, else counted.

    Without ``padding_id`` they are columns; with it, ids other than it count from ``padding_id +
    1`` on, masked or not, and the others are at ``padding_id`` (RoBERTa).
    """
    if padded.positions is not None:
        return padded.positions.long().expand(padded.ids.shape)
    if padding_id is None:
        return torch.arange(padded.ids.shape[1], device=padded.ids.device).expand(padded.ids.shape)
    counted = padded.ids != padding_id
    return counted.cumsum(1) * counted + padding_id


def scan(padded: Padded, padding_id: int | None) -> Tensor:
    """int64 [fields, batch]: ``FIELDS`` of each row."""
    ids, mask = padded.ids, padded.mask
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    columns = torch.arange(ids.shape[1], device=ids.device)
    fields = [real.sum(1), _least(columns.expand(ids.shape), real).clamp_max(ids.shape[1])]
    fields.append(torch.zeros_like(fields[0]) if mask is None else (real & (mask != 1)).sum(1))
    for numbers in (ids, padded.types, positions_of(padded, padding_id)):
        if numbers is None:
            fields += [torch.full_like(fields[0], x) for x in (INT64_HIGHEST, INT64_LOWEST)]
        else:
            fields += [_least(numbers, real), -1 - _least(-1 - numbers.long(), real)]
    return torch.stack(fields)


def _least(numbers: Tensor, real: Tensor) -> Tensor:
    numbers = torch.where(real, numbers.long(), INT64_HIGHEST)
    if numbers.shape[1] == 0:
        return numbers.new_full((numbers.shape[0],), INT64_HIGHEST)
    return numbers.amin(1)


def unpad(padded: Padded, padding_id: int | None, stream: Stream) -> None:
    """Write the real tokens to ``stream``, row by row; 0 in what is left of its buffers."""
    ids, mask = padded.ids, padded.mask
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    index = real.flatten().nonzero().squeeze(1)
    columns = index % ids.shape[1] if ids.shape[1] else index
    types = torch.zeros_like(index) if padded.types is None else padded.types.flatten()[index]
    positions = positions_of(padded, padding_id).flatten()[index]
    found = (ids.flatten()[index], types, positions, columns, index)
    for buffer, numbers in zip(stream[:-1], found, strict=True):
        if buffer is not None:
            buffer.zero_()
            buffer[: len(index)] = numbers
    if stream.starts is not None:
        stream.starts.zero_()
        stream.starts[1:] = real.sum(1).cumsum(0)


def repad(tokens: Tensor, index: Tensor, rows: int) -> Tensor:
    """Tokens [tokens or more, features] -> [rows, features], token i at ``index[i]``, else 0."""
    padded = tokens.new_zeros(rows, tokens.shape[1])
    padded[index.long()] = tokens[: len(index)]
    return padded


def pool(tokens: Tensor, starts: Tensor, columns: Tensor, modes: tuple[str, ...]) -> Tensor:
    """Pool each sequence's tokens in one or more ways (``POOLINGS``), results side by side.

    Sums are float32. A sequence without tokens has 0 for its first and last, -infinity for its
    largest and NaN for its means.

    Args:
        tokens: float [tokens or more, features].
        starts: int32 [batch + 1], where each sequence starts, and the end of the last.
        columns: [tokens or more], each token's column in the padded batch: the weights of
            "weightedmean" are 1, 2, 3, ... by column from a sequence's first token on.
        modes: names of poolings.

    Returns:
        [batch, features * modes] in the dtype of ``tokens``.
    """
    bounds = starts.tolist()
    pooled = tokens.new_empty(len(bounds) - 1, len(modes), tokens.shape[1])
    for row, (start, end) in enumerate(pairwise(bounds)):
        part, at = tokens[start:end].float(), columns[start:end].float()
        for place, mode in enumerate(modes):
            pooled[row, place] = _pool(part, at, mode)
    return pooled.flatten(1)


def _pool(tokens: Tensor, columns: Tensor, mode: str) -> Tensor:
    count = len(tokens)
    if mode in ("cls", "lasttoken"):
        zeros = tokens.new_zeros(tokens.shape[1])
        return zeros if count == 0 else tokens[0 if mode == "cls" else -1]
    if mode == "max":
        lowest = tokens.new_full((1, tokens.shape[1]), -torch.inf)
        return torch.cat([lowest, tokens]).amax(0)
    if mode == "weightedmean":
        weights = columns - columns[:1] + 1
        return (tokens * weights.unsqueeze(1)).sum(0) / weights.sum()
    return tokens.sum(0) / torch.tensor(float(count) ** (1.0 if mode == "mean" else 0.5))
