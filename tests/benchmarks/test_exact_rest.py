"""Counting what random weights leave beside 2:4."""

from __future__ import annotations

import torch

from sparse_runtime.benchmarks.exact_rest import Rest, compare, rest_of, rows


def test_entries_groups_and_slabs_are_counted() -> None:
    matrix = torch.zeros(32, 128, dtype=torch.bool)  # 4 slabs, 1,024 groups
    matrix[0, 0:4] = True  # two too many
    matrix[5, 4:7] = True  # one too many, in the same slab
    matrix[20, 64:66] = True  # fits
    assert rest_of(matrix) == Rest(3 / 9, 2 / 1024, 1 / 4)
    assert Rest(0, 0, 0.25).products == 0.625 and Rest(0, 0, 0.6).weight_bytes(0.625) == 1.0


def test_an_order_leaves_less_and_a_narrow_one_less_so() -> None:
    given, anywhere = compare((64, 256), 75, None)
    _, within = compare((64, 256), 75, 32)
    assert anywhere.entries < within.entries < given.entries


def test_the_table_has_a_line_for_each() -> None:
    lines = list(rows([(16, 64), (32, 64)], [80, 97], None))
    assert len(lines) == 2 + 4 and lines[2].startswith("| 16 x 64 | 80 | ")
    assert len({line.count("|") for line in lines}) == 1
