"""How kernels that hold whole rows divide them among programs."""

from __future__ import annotations

from typing import NamedTuple

MAX_COLUMNS = 16384
"""Widest row that a program holds in registers: 32 values in each thread of 16 warps."""

_FEW_TOKENS = 1056  # eight rows for each of the 132 multiprocessors of an H100
_ROWS_AT_ONCE = 4
_PER_THREAD = 8  # 16 bytes of a 16-bit type: one load
_MOST_PER_THREAD = 32  # rows beyond that many registers would cost occupancy


class RowBlocks(NamedTuple):
    """What one program holds.

    Attributes:
        rows: how many rows.
        columns: a power of two, at least all features.
        num_warps: warps of the program.
    """

    rows: int
    columns: int
    num_warps: int


def row_blocks(tokens: int, features: int) -> RowBlocks:
    """The division of [tokens, features].

    Few tokens take one row a program: a multiprocessor then has many loads under way at once. Many
    tokens take four, which share one load of the weights of a norm, as long as a thread holds no
    more than 32 values.

    Raises:
        ValueError: rows have more than ``MAX_COLUMNS`` features.
    """
    if features > MAX_COLUMNS:
        raise ValueError(f"rows of {features} features: at most {MAX_COLUMNS} are held at once")
    columns = 1 << max(features - 1, 15).bit_length()
    warps = min(16, max(1, columns // (32 * _PER_THREAD)))
    rows = 1 if tokens <= _FEW_TOKENS else _ROWS_AT_ONCE
    while rows > 1 and rows * columns > 32 * warps * _MOST_PER_THREAD:
        rows //= 2
    return RowBlocks(rows, columns, warps)
