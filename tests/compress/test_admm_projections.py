"""Projections are the nearest points: brute force over all masks and grids of tiny groups."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sparse_runtime.compress.training.pruners.projections import (
    InTurn,
    ToIntegers,
    ToPattern,
    projection,
)
from sparse_runtime.formats import cast_values
from sparse_runtime.formats.block import to_blocks
from sparse_runtime.spec import Structure, ValueSpec


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearest_group(group: Tensor, kept: int, choices: list[float] | None = None) -> float:
    """Least squared distance of a group to one of ``kept`` entries, each free or from a grid."""
    best = float("inf")
    for positions in itertools.combinations(range(len(group)), kept):
        error = 0.0
        for i, value in enumerate(group.tolist()):
            if i not in positions:
                error += value**2
            elif choices is not None:
                error += min((value - choice) ** 2 for choice in choices)
        best = min(best, error)
    return best


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8)])
def test_n_m_is_nearest(n: int, m: int) -> None:
    weight = normal(3, 2 * m)
    result = ToPattern(Structure("nm", n=n, m=m))(weight)
    for before, after in zip(weight.view(-1, m), result.view(-1, m), strict=True):
        assert int((after != 0).sum()) == n
        distance = float((before - after).square().sum())
        assert distance == pytest.approx(nearest_group(before, n), rel=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_n_m_with_integers_is_nearest_for_its_scales(dtype: str) -> None:
    # Two chunks of two rows: each row of 8 holds two groups of 4.
    weight, values = normal(4, 8, seed=1), ValueSpec(dtype, "chunk", 2)
    structure = Structure("nm", n=2, m=4)
    result = projection(structure, None, values)(weight)
    _, scales = cast_values(ToPattern(structure)(weight), values)
    limit = 127 if dtype == "int8" else 7
    for row in range(4):
        grid = [step * float(scales[row // 2]) for step in range(-limit, limit + 1)]
        for before, after in zip(weight[row].view(-1, 4), result[row].view(-1, 4), strict=True):
            assert int((after != 0).sum()) <= 2
            distance = float((before - after).square().sum())
            assert distance == pytest.approx(nearest_group(before, 2, grid), rel=1e-4)


def test_blocks_are_nearest() -> None:
    structure, weight = Structure.parse("block:1x2"), normal(2, 6, seed=2)
    result = ToPattern(structure, 0.5)(weight)
    blocks = to_blocks(weight, structure).flatten(0, 1)
    powers = blocks.square().sum(1)
    best = min(sum(float(powers[i]) for i in gone) for gone in itertools.combinations(range(6), 3))
    assert float((weight - result).square().sum()) == pytest.approx(best, rel=1e-5)


GRANULARITIES = ["tensor", "row", "chunk:2", "group:3"]


@pytest.mark.parametrize("scales", GRANULARITIES)
def test_largest_magnitude_scales_are_those_of_packing(scales: str) -> None:
    # 5 rows leave a chunk of one row; 7 inputs a group of one.
    weight, values = normal(5, 7, seed=3), ValueSpec.parse("int4", scales)
    result = ToIntegers(values)(weight)
    integers, steps = cast_values(weight, values)
    again, _ = cast_values(result, values)
    assert torch.equal(integers, again)
    assert torch.equal(result == 0, integers == 0)
    if scales == "row":
        assert torch.equal(result, integers.float() * steps[:, None])


@pytest.mark.parametrize("scales", GRANULARITIES)
def test_searched_scales_are_never_worse_and_best_on_their_grid(scales: str) -> None:
    weight, values = normal(5, 7, seed=4), ValueSpec.parse("int4", scales)
    searched, largest = ToIntegers(values, "search"), ToIntegers(values)
    found = searched._errors(weight - searched(weight))
    assert bool((found <= searched._errors(weight - largest(weight))).all())
    assert found.sum() < searched._errors(weight - largest(weight)).sum()
    if scales != "tensor":
        return
    scale = float(weight.abs().max()) / 7
    tried = [
        float((weight - (weight / s).round().clamp(-7, 7) * s).square().sum())
        for s in (scale * (1 - 0.01 * step) for step in range(80))
    ]
    assert float(found) == pytest.approx(min(tried), rel=1e-5)


def test_zeros_stay_and_projecting_twice_changes_nothing() -> None:
    weight = normal(4, 8, seed=5)
    for one in (
        projection(Structure("nm", n=2, m=4), None, ValueSpec("int8", "row")),
        projection(Structure.parse("block:2x2"), 0.5, None),
        projection(None, None, ValueSpec("int4", "chunk", 2)),
    ):
        once = one(weight)
        torch.testing.assert_close(one(once), once, rtol=1e-6, atol=0)
    both = projection(Structure("nm", n=2, m=4), None, ValueSpec("int8", "row"))
    assert isinstance(both, InTurn)
    assert int((both(weight).view(-1, 4) != 0).sum(1).max()) <= 2
    assert torch.equal(both(torch.zeros(4, 8)), torch.zeros(4, 8))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="got neither"):
        projection(None, None, None)
    with pytest.raises(ValueError, match="int8 or int4"):
        ToIntegers(ValueSpec("fp16"))
    with pytest.raises(ValueError, match="'max' or 'search'"):
        ToIntegers(ValueSpec("int8"), "mean")


def test_a_ranking_across_scales_is_not_the_nearest() -> None:
    # The module says so: 0.75 goes, though leaving out 0.9 on its row's coarse grid costs less.
    weight = torch.tensor([[10.0, 0.9], [0.8, 0.75]])
    values = ValueSpec("int4", "row")
    done = projection(Structure.parse("unstructured"), 0.25, values)(weight)
    assert (done == 0).tolist() == [[False, False], [False, True]]
    other = ToIntegers(values)(weight * torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert (weight - done).square().sum() == pytest.approx(0.842, abs=1e-3)
    assert (weight - other).square().sum() == pytest.approx(0.8125, abs=1e-3)
