"""In what order, and in which parts, the rows of blocks are worked on.

An item is a stretch of one row of tiles. Rows differ in length, so items are sorted longest first:
what is left at the end of a launch is short. Where a launch has few tokens, long rows are cut, so
that all of the GPU works; parts of a row meet in the workspace (block_triton.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ITEM_FIELDS = 8
"""int32 of an item: first output, outputs, first step, end step, part, parts, slot, counter.

``slot`` is the partial sum of the row's part 0, the other parts follow; ``counter`` counts the
parts in. Both are of no meaning where ``parts`` is 1.
"""

PROGRAMS_WANTED = 264
"""Two for each multiprocessor of an H100 (132) and a good two of an A100 (108): one computes while
the other waits for its first loads."""

SHORTEST_PART = 4
"""Steps. A part should cost as much as two steps of loads besides: its sums written and read."""


class TileRow(NamedTuple):
    """Outputs that share their inputs, at most a tile high.

    Attributes:
        output: the first of them.
        height: how many.
        first: step of its first tile.
        end: step behind its last tile.
    """

    output: int
    height: int
    first: int
    end: int


def whole_rows(rows: Sequence[TileRow]) -> Tensor:
    """int32 [rows, ITEM_FIELDS]: an item a row, longest first."""
    return _sorted([(*row, 0, 1, 0, 0) for row in rows])


def parts_of_rows(rows: Sequence[TileRow]) -> tuple[Tensor, int, int]:
    """Items of nearly equal length, as many as ``PROGRAMS_WANTED`` asks for a tile of tokens.

    Returns:
        (int32 [items, ITEM_FIELDS], longest first; slots; counters)
    """
    total = sum(row.end - row.first for row in rows)
    longest = max(SHORTEST_PART, -(-total // PROGRAMS_WANTED))
    items, slots, counters = [], 0, 0
    for row in rows:
        length = row.end - row.first
        parts = max(1, -(-length // longest))
        for part in range(parts):
            first, end = (row.first + length * at // parts for at in (part, part + 1))
            items.append((row.output, row.height, first, end, part, parts, slots, counters))
        if parts > 1:
            slots, counters = slots + parts, counters + 1
    return _sorted(items), slots, counters


def _sorted(items: Sequence[tuple[int, ...]]) -> Tensor:
    ordered = sorted(items, key=lambda item: item[2] - item[3])
    return torch.tensor(ordered, dtype=torch.int32).view(-1, ITEM_FIELDS)
