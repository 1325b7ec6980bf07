"""Unstructured weights as the GPU's kernels read them: a 64-bit entry for 32 inputs, then values.

    entries  int64 [out, ceil(in / 32)]

        bit    63 .. 32                      31 .. 0
               place of the first value      bit i: is w[row, 32 * word + i] stored?

    nonzeros [count]                         row by row, inputs ascending

One load thus says where any of 32 values is: place + (set bits below its own).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD = 32
"""Inputs of one entry."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


class UnstructuredWeight(NamedTuple):
    """A matrix [out, in] without its zeros.

    Attributes:
        entries: int64 [out, ceil(in / 32)], contiguous.
        nonzeros: int8, bf16, fp16 or fp32 [count]; everything but +0, so -0.0 too.
    """

    entries: Tensor
    nonzeros: Tensor


def stored_bits(matrix: Tensor) -> Tensor:
    """Bool of the matrix's shape: where any bit is set."""
    return matrix.contiguous().view(_INTEGERS[matrix.element_size()]) != 0


def to_words(mask: Tensor) -> Tensor:
    """Bool [out, in] -> int64 [out, ceil(in / 32)], 0 .. 2**32 - 1; bit i is a word's input i."""
    bits = pad(mask, (0, -mask.shape[1] % WORD)).unflatten(1, (-1, WORD)).long()
    return (bits << torch.arange(WORD, device=mask.device)).sum(-1)


def from_words(words: Tensor, columns: int) -> Tensor:
    """Integers [out, words] whose low 32 bits count -> Bool [out, columns]."""
    shifts = torch.arange(WORD, device=words.device)
    return ((words.long().unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :columns].bool()


def pack(matrix: Tensor) -> UnstructuredWeight:
    """Keep what is not +0; every bit stays.

    Args:
        matrix: int8, bf16, fp16 or fp32 [out, in], any strides.
    """
    mask = stored_bits(matrix)
    words = to_words(mask)
    counts = pad(mask, (0, -mask.shape[1] % WORD)).unflatten(1, (-1, WORD)).sum(-1)
    starts = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)
    return UnstructuredWeight(starts << WORD | words, matrix[mask])


def unpack(weight: UnstructuredWeight, shape: torch.Size | tuple[int, int]) -> Tensor:
    """What :func:`pack` was given, of this shape [out, in]."""
    matrix = weight.nonzeros.new_zeros(tuple(shape))
    return matrix.masked_scatter(from_words(weight.entries, shape[1]), weight.nonzeros)
