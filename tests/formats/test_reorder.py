"""Packed weights with rows and columns in another order."""

from __future__ import annotations

import pytest
import torch

from sparse_runtime.formats.reorder import reorder_columns, reorder_rows
from sparse_runtime.testing import make_packed

ROWS, COLUMNS = torch.randperm(12), torch.randperm(16)


@pytest.mark.parametrize("scales", ["tensor", "row"])
@pytest.mark.parametrize("values", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("structure", ["dense", "unstructured"])
def test_weights_move_with_their_scales(structure: str, values: str, scales: str) -> None:
    packed = make_packed((12, 16), structure, None, values=values, scales=scales)
    moved = reorder_columns(reorder_rows(packed, ROWS), COLUMNS)
    assert moved.spec == packed.spec
    assert torch.equal(moved.dequantize(), packed.dequantize()[ROWS][:, COLUMNS])


@pytest.mark.parametrize("structure", ["2:4", "block:1x4"])
def test_rows_of_patterns_along_a_row_move(structure: str) -> None:
    packed = make_packed((12, 16), structure, None, values="int8")
    assert torch.equal(reorder_rows(packed, ROWS).dequantize(), packed.dequantize()[ROWS])
    with pytest.raises(ValueError, match=f"columns of a {structure} weight"):
        reorder_columns(packed, COLUMNS)


def test_groups_move_with_their_row() -> None:
    packed = make_packed((12, 16), values="int8", scales="group:4")
    assert torch.equal(reorder_rows(packed, ROWS).dequantize(), packed.dequantize()[ROWS])
    with pytest.raises(ValueError, match="scales 'group:4'"):
        reorder_columns(packed, COLUMNS)


@pytest.mark.parametrize(("structure", "scales"), [("block:4x1", "row"), ("dense", "chunk:3")])
def test_rows_that_belong_together_stay(structure: str, scales: str) -> None:
    packed = make_packed((12, 16), structure, values="int8", scales=scales)
    with pytest.raises(ValueError, match="rows of a"):
        reorder_rows(packed, ROWS)
