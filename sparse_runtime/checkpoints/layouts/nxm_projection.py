"""The projections of NxMiFormer: N:M masks, and symmetric integers with a scale a chunk of rows.

Source: "NxMiFormer" (arXiv 2206.15014) and its ADMM code, whose arithmetic these follow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantized import QuantizedValues


def keep_largest(weight: Tensor, group: int, kept: int) -> Tensor:
    """The weight with only the ``kept`` largest magnitudes of each ``group`` inputs.

    Of equal magnitudes the first are kept.

    Args:
        weight: [out, in], in a multiple of ``group``.
        group: consecutive inputs, "N" in the configuration.
        kept: "M" in the configuration.
    """
    groups = weight.reshape(-1, group)
    order = groups.abs().sort(dim=1, descending=True, stable=True).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(1, order[:, :kept], True)
    return torch.where(mask, groups, 0).reshape(weight.shape)


def quantize_to_largest(weight: Tensor, bits: int, rows: int) -> QuantizedValues:
    """Integers with the scale that gives each chunk's extreme value the end of the range.

    scale = largest magnitude / 2^(bits-1) where it is reached by a negative value alone, else
    / (2^(bits-1) - 1); integers are round(w * (1 / scale)), half to even, as in torch's
    fake_quantize_per_channel_affine.

    Args:
        weight: float32 [out, in], out a multiple of ``rows``.
        bits: 4 or 8.
        rows: of a chunk.
    """
    chunks = weight.reshape(weight.shape[0] // rows, -1)
    largest = chunks.abs().amax(dim=1)
    steps = torch.where(chunks.amax(dim=1) == largest, 2 ** (bits - 1) - 1, 2 ** (bits - 1))
    scales = _without_zeros(largest / steps)
    return _integers(chunks * (1.0 / scales)[:, None], scales, bits, weight.shape)


def quantize_by_search(weight: Tensor, bits: int, rows: int, norm: int) -> QuantizedValues:
    """Integers with the scale of least error for each chunk.

    All chunks try the same scales: from the one for the matrix' extreme value downwards in steps of
    256 epsilons of float32, until a step improves none.

    Args:
        weight: float32 [out, in], out a multiple of ``rows``.
        bits: 4 or 8.
        rows: of a chunk.
        norm: 1 or 2, of the error.
    """
    chunks = weight.reshape(weight.shape[0] // rows, -1)
    largest = weight.abs().max()
    ends = 2 ** (bits - 1) - (1 if largest == weight.max() else 0)
    scale, step = largest / ends, 256 * torch.finfo(torch.float32).eps
    best = torch.full((len(chunks),), torch.finfo(torch.float32).max)
    scales = torch.zeros(len(chunks))
    while scale > 0:
        rounded = (chunks / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        errors = torch.norm(rounded * scale - chunks, p=norm, dim=-1)
        better = errors < best
        if not bool(better.any()):
            break
        best, scales = torch.where(better, errors, best), torch.where(better, scale, scales)
        scale = scale - step
    scales = _without_zeros(scales)
    return _integers(chunks / scales[:, None], scales, bits, weight.shape)


def _without_zeros(scales: Tensor) -> Tensor:
    """Scales of chunks without a nonzero are 1: any scale gives their zeros."""
    return torch.where(scales == 0, 1.0, scales)


def _integers(scaled: Tensor, scales: Tensor, bits: int, shape: torch.Size) -> QuantizedValues:
    rounded = scaled.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return QuantizedValues(rounded.to(torch.int8).reshape(shape), scales)
