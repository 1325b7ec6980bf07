"""Which query rows each program of the attention kernel computes, and how large its tiles are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as pairs
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..defaults import MULTIPROCESSORS, Key, Table

_WARPS = {16: 1, 32: 2, 64: 4, 128: 8}
"""Warps by query rows: 16 rows, one of the tensor cores' tiles, each; 64 make a warp group."""


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


def default_config(
    head_size: int,
    longest: int,
    sequences: int,
    heads: int,
    dtype: torch.dtype,
    capability: int = 90,
    multiprocessors: int = 132,
) -> Config:
    """Tiles for sequences of at most ``longest`` tokens: the shipped ones, or by the rule.

    Args:
        head_size: features of a head, up to 256.
        longest: an upper bound of the lengths.
        sequences: how many.
        heads: number of attention heads.
        dtype: of qkv.
        capability: 90 for sm_90.
        multiprocessors: of the GPU.

    Raises:
        ValueError: heads are too large to be held in registers.
    """
    if head_size > 256:
        raise ValueError(f"heads of {head_size} features: at most 256 are held at once")
    product = "fp32" if dtype == torch.float32 else "half"
    span, batch = max(16, 1 << (longest - 1).bit_length()), 1 << (sequences - 1).bit_length()
    key = (product, head_size, heads, span, batch)
    tabled: Config | None = TABLE.get(key, capability, multiprocessors)
    if tabled is not None:
        return tabled
    return predicted(product, head_size, longest, sequences * heads, capability, multiprocessors)


def predicted(
    product: str,
    head_size: int,
    longest: int,
    streams: int,
    capability: int,
    multiprocessors: int,
) -> Config:
    """Tiles by the rule.

    Query rows: 64, which Hopper's instructions take at least, or half of it again and again while
    there would be fewer programs than multiprocessors; 128, which read keys and values half as
    often, where sequences take several key tiles and programs abound. Keys: all of a sequence of up
    to 128 tokens in one tile, for 16 bits; else 64, so that two programs share a multiprocessor.

    Args:
        product: "half" (bf16, fp16) or "fp32".
        head_size: features of a head, up to 256.
        longest: an upper bound of the lengths.
        streams: heads, of all sequences together.
        capability: 90 for sm_90.
        multiprocessors: of the GPU.
    """
    if product == "fp32":  # no tensor cores: registers bound the tile
        return Config(16, 32 if head_size <= 64 else 16, 4, 1)
    span = max(16, 1 << (longest - 1).bit_length())

    def programs(rows: int) -> int:
        return streams * -(-longest // rows)

    block_q = min(span, 64)
    while block_q > 16 and programs(block_q) < multiprocessors:
        block_q //= 2
    if head_size > 128:  # what a thread holds of the result leaves no room for more
        return Config(min(block_q, 32), 32, 4, 2)
    # Without wgmma, whose operands stay in shared memory, 64 rows of 128 keys leave a
    # multiprocessor with two programs.
    in_one = 128 if block_q < 64 or capability >= 90 else 64
    if span <= in_one:
        warps = max(_WARPS[block_q], 4 if span >= 64 else 1)
        return Config(block_q, span, warps, 1, single=True)
    if block_q == 16:
        return Config(16, 128 if head_size <= 64 else 64, 4, 2)
    if block_q == 64 and longest > 128 and programs(128) >= 2 * multiprocessors:
        block_q = 128
    return Config(block_q, 64, max(4, _WARPS[block_q]), 2 if block_q == 32 else 3)


MODELS = ((32, 12), (64, 12), (64, 16))
"""Size and number of heads: MiniLM; DistilBERT and BERT base; BERT large."""


def predict(capability: int) -> Iterator[tuple[Key, Config]]:
    """The rule's tiles for every entry of the table."""
    lengths, batches = (16, 32, 64, 128, 256, 512), (1, 2, 4, 8, 16, 32, 64, 128)
    for product, (head, heads), longest, batch in pairs(("half", "fp32"), MODELS, lengths, batches):
        gpu = (capability, MULTIPROCESSORS[capability])
        config = predicted(product, head, longest, heads * batch, *gpu)
        yield (product, head, heads, longest, batch), config


TABLE = Table(
    "attention",
    Path(__file__).parent / "tuned",
    ("product", "head_size", "heads", "longest", "sequences"),
    Config,
    predict,
)
