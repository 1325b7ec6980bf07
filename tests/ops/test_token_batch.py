"""How a batch is cut into parts that are run one after the other."""

from __future__ import annotations

import pytest
import torch

from sparse_runtime.ops import TokenBatch


def batch_of(lengths: list[int]) -> TokenBatch:
    columns = torch.cat([torch.arange(length) for length in lengths])
    rows = torch.cat([torch.full((length,), row) for row, length in enumerate(lengths)])
    width = max(lengths)
    return TokenBatch(lengths, columns, rows * width + columns, len(lengths), width)


@pytest.mark.parametrize(
    "lengths",
    [
        [15, 0],  # nothing follows a sequence that is a part of its own
        [0, 15],  # nothing comes before one
        [15, 0, 0, 15],  # and between two
        [0, 4, 0, 4, 4, 0, 15, 1, 0],  # several sequences a part
        [3, 3, 3],  # no row without tokens
    ],
)
def test_parts_are_whole_sequences_with_tokens(lengths: list[int]) -> None:
    whole = batch_of(lengths)
    parts = list(whole.split(8))
    assert [length for part, _ in parts for length in part.lengths] == lengths
    end = 0
    for part, at in parts:
        assert at.start == end and at.stop - at.start == sum(part.lengths) > 0
        assert sum(part.lengths) <= 8 or sum(length > 0 for length in part.lengths) == 1
        torch.testing.assert_close(part.index, whole.index[at], rtol=0, atol=0)
        torch.testing.assert_close(part.row_positions, whole.row_positions[at], rtol=0, atol=0)
        end = at.stop
    assert end == sum(lengths)


def test_a_batch_that_fits_stays_whole() -> None:
    whole = batch_of([3, 0, 5])
    assert [(part is whole, at) for part, at in whole.split(8)] == [(True, slice(0, 8))]


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ([5, 5, 5], [10, 5]),  # 10 is nearer to 8 than 5
        ([6, 4, 4], [10, 4]),  # as near: longer parts read weights less often
        ([6, 5], [6, 5]),  # 11 is further than 6
        ([8, 1], [8, 1]),  # full
        ([7, 1, 1], [8, 1]),
        ([20, 3], [20, 3]),  # too long by itself
        ([0, 5, 0, 5, 0], [10]),
    ],
)
def test_parts_as_near_as_may_be(lengths: list[int], parts: list[int]) -> None:
    found = [sum(part.lengths) for part, _ in batch_of(lengths).split(8, nearest=True)]
    assert found == parts
