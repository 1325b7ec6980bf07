"""Padded inputs and the stream of their real tokens, as the kernels of this folder take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FIELDS: tuple[str, ...] = (
    "length",
    "first",
    "irregular",
    "lowest_id",
    "highest_id",
    "lowest_type",
    "highest_type",
    "lowest_position",
    "highest_position",
)
"""What a scan says of each row, in this order: how many tokens are real; the column of the first
(``columns`` where none is); how many numbers of the mask are neither 0 nor 1; bounds over the real
tokens, int64's largest and smallest where there are none (or no such input)."""

INT64_LOWEST, INT64_HIGHEST = -(2**63), 2**63 - 1


class Padded(NamedTuple):
    """A padded batch on one device.

    Attributes:
        ids: int32 or int64 [batch, columns].
        mask: any real type [batch, columns], nonzero for tokens; None keeps all.
        types: int32 or int64 [batch, columns] or None.
        positions: int32 or int64 [batch, columns] or [1, columns]; None: see ``padding_id`` of the
            functions that read it.
    """

    ids: Tensor
    mask: Tensor | None = None
    types: Tensor | None = None
    positions: Tensor | None = None


class Stream(NamedTuple):
    """Buffers for a stream of tokens, int32 or int64 [capacity], None where not wanted.

    Attributes:
        ids: words.
        types: token types; 0 where the batch has none.
        positions: rows of the position table.
        columns: each token's column in the padded batch.
        index: each token's place in the flattened padded batch.
        starts: int32 [batch + 1], where each sequence starts in the stream, and the end.
    """

    ids: Tensor | None
    types: Tensor | None
    positions: Tensor | None
    columns: Tensor | None
    index: Tensor | None
    starts: Tensor | None


def plain(padded: Padded) -> Padded:
    """The same batch with columns side by side, as kernels read it; a bool mask as bytes."""

    def side_by_side(tensor: Tensor) -> Tensor:
        return tensor if tensor.stride(1) == 1 else tensor.contiguous()

    ids, mask, *others = (None if field is None else side_by_side(field) for field in padded)
    assert ids is not None
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    return Padded(ids, mask, *others)


def row_strides(padded: Padded) -> tuple[int, int, int, int]:
    """Elements from one row to the next of each tensor; 0 where one row serves all."""
    ids, mask, types, positions = (
        0 if field is None or field.shape[0] == 1 else field.stride(0) for field in padded
    )
    return ids, mask, types, positions
