"""Padded inputs -> the stream of their real tokens, in one launch."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operands import Padded, Stream, plain, row_strides
from .scan_triton import BLOCK, positions_at, real_at


@triton.jit
def put(buffer, at, numbers, mask):
    """Store to a buffer of either integer type, if it is wanted."""
    if buffer is not None:
        tl.store(buffer + at, numbers.to(buffer.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=[
        "ids_stride",
        "mask_stride",
        "types_stride",
        "positions_stride",
        "rows",
        "columns",
        "padding_id",
        "tokens",
        "capacity",
    ]
)
def unpad_kernel(
    padded,
    ids_stride,
    mask_stride,
    types_stride,
    positions_stride,
    rows,
    columns,
    padding_id,
    lengths,
    tokens,
    capacity,
    stream,
    AFTER_PADDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row of the batch, and one for each block of what the buffers have left."""
    row = tl.program_id(0)
    if row < rows:
        # Few enough lengths come before a row that adding them costs less than another launch.
        before = 0
        for start in range(0, row, BLOCK):
            at = start + tl.arange(0, BLOCK)
            before += tl.sum(tl.load(lengths + at, mask=at < row, other=0)).to(tl.int32)
        if stream.starts is not None:
            tl.store(stream.starts + row, before)
        wide = row.to(tl.int64)
        ids = padded.ids + wide * ids_stride
        mask = None if padded.mask is None else padded.mask + wide * mask_stride
        types = None if padded.types is None else padded.types + wide * types_stride
        positions = None if padded.positions is None else padded.positions + wide * positions_stride
        counted = 0
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < columns
            real, _ = real_at(at, columns, mask)
            kept = real.to(tl.int32)
            to = before + tl.cumsum(kept, 0) - 1
            before += tl.sum(kept)
            words = tl.load(ids + at, mask=inside, other=0).to(tl.int64)
            places, counted = positions_at(
                at, words, inside, positions, counted, padding_id, AFTER_PADDING
            )
            put(stream.ids, to, words, real)
            if types is None:
                put(stream.types, to, tl.zeros_like(words), real)
            else:
                put(stream.types, to, tl.load(types + at, mask=inside, other=0), real)
            put(stream.positions, to, places, real)
            put(stream.columns, to, at, real)
            put(stream.index, to, wide * columns + at, real)
        if stream.starts is not None:
            tl.store(stream.starts + rows, before, mask=row == rows - 1)
    else:
        at = tokens + (row - rows) * BLOCK + tl.arange(0, BLOCK)
        left = at < capacity
        nothing = tl.zeros_like(at)
        put(stream.ids, at, nothing, left)
        put(stream.types, at, nothing, left)
        put(stream.positions, at, nothing, left)
        put(stream.columns, at, nothing, left)
        put(stream.index, at, nothing, left)


def unpad(
    padded: Padded, padding_id: int | None, lengths: Tensor, tokens: int, stream: Stream
) -> None:
    """Write the real tokens to ``stream``, as ``unpad`` of reference.py; one launch, no wait.

    Args:
        padded: the batch.
        padding_id: where positions are counted after it (RoBERTa), else None.
        lengths: int64 [batch], the first field of ``scan``.
        tokens: their sum.
        stream: buffers of one capacity, at least ``tokens``; the rest is filled with 0, which
            every embedding table has.
    """
    padded = plain(padded)
    rows, columns = padded.ids.shape
    capacity = max((len(buffer) for buffer in stream[:-1] if buffer is not None), default=tokens)
    if rows == 0 and stream.starts is not None:
        stream.starts.zero_()
    programs = rows + triton.cdiv(capacity - tokens, BLOCK)
    if programs:
        after = padded.positions is None and padding_id is not None
        with torch.cuda.device_of(padded.ids):
            unpad_kernel[(programs,)](
                padded,
                *row_strides(padded),
                rows,
                columns,
                padding_id or 0,
                lengths,
                tokens,
                capacity,
                stream,
                AFTER_PADDING=after,
                BLOCK=BLOCK,
                num_warps=4,
            )
