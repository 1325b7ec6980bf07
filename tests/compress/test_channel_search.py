"""Assignments and channel orders against brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from sparse_runtime.compress.oneshot.assignment import best_assignment
from sparse_runtime.compress.oneshot.channel_search import (
    BlockObjective,
    NmObjective,
    search_order,
)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_assignment_equals_brute_force(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(10):
        gain = rng.normal(size=(size, size))
        assigned = best_assignment(gain)
        best = max(gain[np.arange(size), list(order)].sum() for order in permutations(range(size)))
        assert sorted(assigned) == list(range(size))
        assert gain[np.arange(size), assigned].sum() == pytest.approx(best)


def test_assignment_equals_scipy_where_rows_compete() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    gain = rng.integers(0, 4, (60, 60)).astype(float)  # ties, long augmenting paths
    rows, columns = optimize.linear_sum_assignment(gain, maximize=True)
    assert gain[np.arange(60), best_assignment(gain)].sum() == gain[rows, columns].sum()


@pytest.mark.parametrize("gain", [np.zeros((2, 3)), np.array([[np.nan]])])
def test_assignment_refuses(gain: np.ndarray) -> None:
    with pytest.raises(ValueError, match="square"):
        best_assignment(gain)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 8)])
def test_gains_of_nm_are_the_values_of_the_filled_groups(n: int, m: int) -> None:
    torch.manual_seed(0)
    objective = NmObjective(torch.rand(7, 3 * m, dtype=torch.float64), m, n)
    _check_gains(objective)


def test_gains_of_blocks_are_the_values_of_the_filled_groups() -> None:
    torch.manual_seed(0)
    _check_gains(BlockObjective(torch.rand(7, 12, dtype=torch.float64), 4, 2.1))


def _check_gains(objective: NmObjective | BlockObjective) -> None:
    groups = torch.randperm(objective.scores.shape[1]).view(-1, objective.size)
    rest, free = groups[:, 1:], groups[:, 0]
    gains = objective.gains(rest, free)
    for g, others in enumerate(rest):
        for f, channel in enumerate(free):
            filled = torch.cat([others, channel[None]])[None]
            assert gains[g, f] == pytest.approx(float(objective.value(filled)))


def test_search_finds_the_best_order_of_a_small_matrix() -> None:
    # 8 channels in two groups of 4: 35 ways, all compared.
    torch.manual_seed(1)
    objective = NmObjective(torch.rand(5, 8), 4, 2)
    values = [
        float(
            objective.value(torch.tensor([[0, *first], sorted({*range(1, 8)} - set(first))])).sum()
        )
        for first in {tuple(sorted(order[:3])) for order in permutations(range(1, 8), 3)}
    ]
    assert len(values) == 35
    found = objective.value(search_order([objective]).view(2, 4)).sum()
    assert float(found) == pytest.approx(max(values))


def test_channels_that_exclude_each_other_are_parted() -> None:
    # Channels 0-3 are large in one half of the rows, 4-7 in the other: 2:4 on 2 + 2 keeps all.
    scores = torch.zeros(6, 8)
    scores[:3, :4] = 1
    scores[3:, 4:] = 1
    objective = NmObjective(scores, 4, 2)
    assert objective.value(torch.arange(8).view(2, 4)).sum() == 12
    order = search_order([objective])
    assert objective.value(order.view(2, 4)).sum() == 24
    assert sorted(order.tolist()) == list(range(8))


def test_the_tail_and_a_good_order_stay() -> None:
    scores = torch.zeros(3, 10)
    scores[:, ::2] = 1  # 2 of each 4 already
    order = search_order([NmObjective(scores, 4, 2)])
    assert torch.equal(order, torch.arange(10))


def test_objectives_must_agree() -> None:
    one = NmObjective(torch.rand(2, 8), 4, 2)
    with pytest.raises(ValueError, match="same"):
        search_order([one, NmObjective(torch.rand(2, 8), 2, 1)])
    with pytest.raises(ValueError, match="none"):
        search_order([])
