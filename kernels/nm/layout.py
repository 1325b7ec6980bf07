"""N:M weights as the GPU's kernels read them: a bit for each input, and words of kept values.

    masks  int32 [out, ceil(in / 32)]    bit i: is input 32 * word + i one of the N of its group?

A kernel expands ``columns`` neighbouring inputs (whole groups) from one word of memory, as wide as
what they keep, rounded up to 1, 2, 4 or 8 bytes:

    2:4 of int8, columns = 8:            byte 3        byte 2        byte 1        byte 0
                                         group 1, 2nd  group 1, 1st  group 0, 2nd  group 0, 1st

    kept   [out, pieces, slots]          slots values a word, first in the lowest bits

Where a group keeps more than 8 bytes or has 16 inputs, there are no such words: a piece is a group
with N slots, and a kernel loads each value by itself. Rows are padded with zeros to whole words of
masks, so every group is whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..unstructured.layout import WORD, from_words, stored_bits, to_words

WORD_BYTES = 8


class NMWeight(NamedTuple):
    """A matrix [out, in] with N values for each M inputs.

    Attributes:
        kept: int8, bf16, fp16 or fp32 [out, pieces, slots], contiguous.
        masks: int32 [out, ceil(in / 32)], contiguous.
        n: N.
        m: M, 2, 4, 8 or 16.
    """

    kept: Tensor
    masks: Tensor
    n: int
    m: int


def word_of(n: int, m: int, element_size: int) -> tuple[int, int]:
    """(inputs that a kernel expands from one word, values that a word holds); zeros: no words."""
    choices = []
    for columns in (8, 4):
        slots = 1 << (columns // m * n - 1).bit_length() if columns >= m else 0
        if 0 < slots * element_size <= WORD_BYTES:
            choices.append((columns, slots))
    narrow = [choice for choice in choices if choice[1] * element_size <= WORD_BYTES // 2]
    return next(iter(narrow + choices), (0, 0))


def pack(matrix: Tensor, n: int, m: int) -> NMWeight:
    """Keep N values of each M; every bit stays.

    Args:
        matrix: int8, bf16, fp16 or fp32 [out, in], any strides.
        n: N.
        m: M.

    Raises:
        ValueError: an M that the kernels do not have, or more than N values in a group.
    """
    if m not in (2, 4, 8, 16):
        raise ValueError(
            f"{n}:{m}: the kernels expand groups of 2, 4, 8 or 16 inputs; keep this matrix in the "
            "unstructured layout"
        )
    columns, slots = word_of(n, m, matrix.element_size())
    grouped = pad(matrix, (0, -matrix.shape[1] % WORD)).unflatten(1, (-1, m))
    stored = stored_bits(grouped)
    if bool((stored.sum(-1) > n).any()):
        raise ValueError(
            f"matrix: expected at most {n} values in {m} inputs, found a group of more"
        )
    # A stable sort puts what is stored first and then the lowest free positions.
    places = (~stored).byte().argsort(dim=-1, stable=True)[..., :n].sort(-1).values
    kept = grouped.gather(-1, places)
    if columns:
        kept = kept.flatten(1).unflatten(1, (-1, columns // m * n))
        kept = pad(kept, (0, slots - kept.shape[2]))
    masks = to_words(torch.zeros_like(stored).scatter_(-1, places, True).flatten(1))
    # 2**31 and up are the negative numbers of int32.
    masks = torch.where(masks < 1 << 31, masks, masks - (1 << 32)).int()
    return NMWeight(kept.contiguous(), masks, n, m)


def unpack(weight: NMWeight, shape: torch.Size | tuple[int, int]) -> Tensor:
    """What :func:`pack` was given, of this shape [out, in]."""
    kept, masks, n, m = weight
    columns, _ = word_of(n, m, kept.element_size())
    kept = kept[..., : columns // m * n if columns else n].contiguous()
    mask = from_words(masks, masks.shape[1] * WORD)
    return kept.new_zeros(mask.shape).masked_scatter(mask, kept)[:, : shape[1]].contiguous()
