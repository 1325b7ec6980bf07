"""Any matrix as 2:4 and a remainder, and orders of inputs with less of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_runtime.kernels.nm.exact_split import split
from sparse_runtime.kernels.nm.input_order import find_input_order, slab_order
from sparse_runtime.kernels.nm.reference import exact_linear


def sparse_matrix(shape: tuple[int, int], density: float, dtype: torch.dtype, seed=0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.int8:
        matrix = torch.randint(-128, 128, shape, generator=generator)
    else:
        matrix = torch.randn(shape, generator=generator)
    return (matrix * (torch.rand(shape, generator=generator) < density)).to(dtype)


def overflow(matrix: Tensor) -> int:
    """Nonzeros beyond two of four, counted group by group."""
    rows, columns = matrix.shape
    return sum(
        max(0, int((matrix[row, at : at + 4] != 0).sum()) - 2)
        for row in range(rows)
        for at in range(0, columns, 4)
    )


# One value; a group and a part of one; whole slabs; no rows.
@pytest.mark.parametrize("shape", [(1, 1), (17, 66), (48, 128), (0, 8)])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])  # nothing, some groups, every group
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16, torch.float32])
def test_the_parts_add_up_bit_for_bit(dtype, density: float, shape: tuple[int, int]) -> None:
    matrix = sparse_matrix(shape, density, dtype)
    two_of_four, remainder = split(matrix)
    assert torch.equal(two_of_four + remainder.matrix(shape[1]), matrix)
    assert overflow(two_of_four) == 0
    assert len(remainder.entries) == overflow(matrix) == int(remainder.offsets[-1])
    assert bool((remainder.entries != 0).all())


def test_the_two_largest_of_a_group_stay() -> None:
    matrix = torch.tensor([[3, -128, 127, 1], [5, 5, -5, 0], [0, 0, 0, 9]], dtype=torch.int8)
    two_of_four, remainder = split(matrix)
    assert two_of_four.tolist() == [[0, -128, 127, 0], [5, 5, 0, 0], [0, 0, 0, 9]]
    assert remainder.offsets.tolist() == [0, 2, 3, 3]
    assert remainder.columns.tolist() == [0, 3, 2]
    assert remainder.entries.tolist() == [3, 1, -5]


def test_minus_zeros_stay() -> None:
    matrix = torch.tensor([[-0.0, 1.0, 2.0, -0.0], [1.0, 2.0, 3.0, -0.0]])
    two_of_four, remainder = split(matrix)
    assert remainder.entries.tolist() == [1.0]
    assert torch.equal(two_of_four.signbit(), matrix.signbit())


def test_the_product_of_integers_is_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-128, 128, (9, 130), generator=generator).to(torch.int8)
    weight = sparse_matrix((40, 130), 0.3, torch.int8)
    expected = (x.long() @ weight.long().T).int()
    assert torch.equal(exact_linear(x, *split(weight)), expected)
    order = find_input_order(weight)
    assert torch.equal(exact_linear(x[:, order], *split(weight[:, order])), expected)
    half = exact_linear(x.double(), *split(weight.double()))
    assert torch.equal(half, expected.double())


# Too small to pair; a part of a group; an odd number of groups; several slabs, the last a part.
@pytest.mark.parametrize("inputs", [1, 4, 7, 12, 66, 200])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.6, 1.0])
def test_an_order_of_inputs_is_one_and_never_worse(inputs: int, density: float) -> None:
    matrix = sparse_matrix((50, inputs), density, torch.int8)
    order = find_input_order(matrix)
    assert order.sort().values.tolist() == list(range(inputs))
    assert overflow(matrix[:, order]) <= overflow(matrix)
    assert torch.equal(order, find_input_order(matrix))


def test_an_order_shrinks_what_can_be_shrunk() -> None:
    nonzero = torch.zeros(64, 64, dtype=torch.bool)
    nonzero[:, :16] = True  # four full groups, twelve empty ones
    order = find_input_order(nonzero)
    assert overflow(nonzero[:, order].int()) == 0
    ninety = sparse_matrix((256, 256), 0.1, torch.int8)
    assert 50 * overflow(ninety[:, find_input_order(ninety)]) <= overflow(ninety)


def test_no_outputs_leave_the_order() -> None:
    assert find_input_order(torch.zeros(0, 8)).tolist() == list(range(8))


def test_groups_that_overflow_alike_share_slabs() -> None:
    group, tile = np.arange(64) % 4, np.arange(4)
    overflows = group[:, None] == tile  # every slab of 16 groups has all four kinds
    order = slab_order(overflows)
    assert sorted(order.tolist()) == list(range(64))
    assert all(len(set(group[order[at : at + 16]])) == 1 for at in range(0, 64, 16))
