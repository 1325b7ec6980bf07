"""One pass over padded inputs that finds all that a host must know of them, without waiting."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operands import FIELDS, Padded, plain, row_strides

LOWEST = tl.constexpr(-(2**63))
HIGHEST = tl.constexpr(2**63 - 1)
BLOCK = 512  # columns at a time; most sequences are one block


@triton.jit
def positions_at(at, ids, inside, positions, counted, padding_id, AFTER_PADDING: tl.constexpr):
    """Positions of columns ``at`` of one row, and how many ids were counted up to their end.

    Args:
        at: int32, columns.
        ids: int64, their ids.
        inside: bool, which columns there are.
        positions: pointer to this row's given positions, or None.
        counted: ids other than ``padding_id`` before these columns.
        padding_id: read with AFTER_PADDING.
        AFTER_PADDING: count from ``padding_id + 1`` on, leaving that id out.
    """
    if positions is not None:
        found = tl.load(positions + at, mask=inside, other=0).to(tl.int64)
    elif AFTER_PADDING:
        counts = (inside & (ids != padding_id)).to(tl.int32)
        found = ((tl.cumsum(counts, 0) + counted) * counts + padding_id).to(tl.int64)
        counted += tl.sum(counts)
    else:
        found = at.to(tl.int64)
    return found, counted


@triton.jit
def real_at(at, columns, mask):
    """Which of the columns ``at`` of one row hold real tokens, and which have a mask beside 0, 1.

    Args:
        at: int32, columns.
        columns: number of all.
        mask: pointer to this row's mask, or None.
    """
    real = at < columns
    irregular = at < 0
    if mask is not None:
        value = tl.load(mask + at, mask=real, other=0)
        real = real & (value != 0)
        irregular = real & (value != 1)
    return real, irregular


@triton.jit
def widen(low, high, numbers, real):
    """Bounds that hold these numbers too."""
    low = tl.minimum(low, tl.min(tl.where(real, numbers, HIGHEST)))
    return low, tl.maximum(high, tl.max(tl.where(real, numbers, LOWEST)))


@triton.jit(
    do_not_specialize=[
        "ids_stride",
        "mask_stride",
        "types_stride",
        "positions_stride",
        "columns",
        "padding_id",
    ]
)
def scan_kernel(
    padded,
    ids_stride,
    mask_stride,
    types_stride,
    positions_stride,
    columns,
    padding_id,
    report,
    AFTER_PADDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row; ``report`` is int64 [fields, batch]."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    ids = padded.ids + row * ids_stride
    mask = None if padded.mask is None else padded.mask + row * mask_stride
    types = None if padded.types is None else padded.types + row * types_stride
    positions = None if padded.positions is None else padded.positions + row * positions_stride
    length, irregular, counted = 0, 0, 0
    first = columns
    low_id, low_type, low_position = HIGHEST, HIGHEST, HIGHEST
    high_id, high_type, high_position = LOWEST, LOWEST, LOWEST
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < columns
        real, odd = real_at(at, columns, mask)
        length += tl.sum(real.to(tl.int32))
        irregular += tl.sum(odd.to(tl.int32))
        first = tl.minimum(first, tl.min(tl.where(real, at, columns)))
        words = tl.load(ids + at, mask=inside, other=0).to(tl.int64)
        low_id, high_id = widen(low_id, high_id, words, real)
        if types is not None:
            kinds = tl.load(types + at, mask=inside, other=0).to(tl.int64)
            low_type, high_type = widen(low_type, high_type, kinds, real)
        places, counted = positions_at(
            at, words, inside, positions, counted, padding_id, AFTER_PADDING
        )
        low_position, high_position = widen(low_position, high_position, places, real)
    tl.store(report + row, length)
    tl.store(report + rows + row, first)
    tl.store(report + 2 * rows + row, irregular)
    tl.store(report + 3 * rows + row, low_id)
    tl.store(report + 4 * rows + row, high_id)
    tl.store(report + 5 * rows + row, low_type)
    tl.store(report + 6 * rows + row, high_type)
    tl.store(report + 7 * rows + row, low_position)
    tl.store(report + 8 * rows + row, high_position)


def scan(padded: Padded, padding_id: int | None) -> Tensor:
    """``FIELDS`` of each row, as ``scan`` of reference.py; one launch, and no wait for it.

    Args:
        padded: the batch.
        padding_id: where positions are counted after it (RoBERTa), else None.

    Returns:
        int64 [fields, batch] on the batch's device.
    """
    padded = plain(padded)
    rows, columns = padded.ids.shape
    report = torch.empty(len(FIELDS), rows, dtype=torch.int64, device=padded.ids.device)
    if rows:
        after = padded.positions is None and padding_id is not None
        with torch.cuda.device_of(padded.ids):
            scan_kernel[(rows,)](
                padded,
                *row_strides(padded),
                columns,
                padding_id or 0,
                report,
                AFTER_PADDING=after,
                BLOCK=BLOCK,
                num_warps=4,
            )
    return report
