"""Which query rows each program of the attention kernel computes, and how large its tiles are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Config(NamedTuple):
    """Tiles of the attention kernel.

    Attributes:
        block_q: query rows of a program, a power of two from 16.
        block_k: keys of a tile, a power of two from 16.
        num_warps: warps of a program.
        num_stages: depth of the pipeline of key and value loads.
        single: no sequence is longer than ``block_k``: one tile, nothing rescaled. Rows of a longer
            sequence become NaN.
    """

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    single: bool = False


def query_blocks(lengths: list[int], block_q: int, size: int | None = None) -> Tensor:
    """The schedule: one row a query block, those of the longest sequences first.

    A block of a long sequence takes longest; started last, it would run alone.

    Args:
        lengths: tokens of each sequence, one after the other in the stream.
        block_q: query rows of a block.
        size: rows of the schedule, the last ones (0, 0, 0), of which programs exit at once; None is
            as many as needed.

    Returns:
        int32 [blocks, 3] on the CPU: first query row; first and end row of the sequence.

    Raises:
        ValueError: ``size`` rows are too few.
    """
    each = torch.tensor(lengths, dtype=torch.int64)
    ends = each.cumsum(0)
    order = each.argsort(descending=True, stable=True)
    each, ends = each[order], ends[order]
    blocks = (each + block_q - 1) // block_q
    total = int(blocks.sum())
    if size is not None and size < total:
        raise ValueError(f"{total} query blocks of {block_q} rows, a schedule of {size}: give more")
    before = torch.repeat_interleave(blocks.cumsum(0) - blocks, blocks)
    starts = torch.repeat_interleave(ends - each, blocks)
    schedule = torch.zeros(total if size is None else size, 3, dtype=torch.int32)
    schedule[:total, 0] = starts + (torch.arange(total) - before) * block_q
    schedule[:total, 1] = starts
    schedule[:total, 2] = torch.repeat_interleave(ends, blocks)
    return schedule


def most_query_blocks(tokens: int, sequences: int, block_q: int) -> int:
    """Blocks of :func:`query_blocks` of any ``sequences`` lengths that sum to ``tokens``."""
    return (tokens + min(sequences, tokens) * (block_q - 1)) // block_q
