"""OBS closed forms: saliencies and updates against solving the constrained problem directly."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from sparse_runtime.compress import Pattern
from sparse_runtime.compress.oneshot.exact import exact_obs, remove
from sparse_runtime.compress.oneshot.problem import Problem
from sparse_runtime.compress.oneshot.selection import (
    block_saliency,
    choose_nm,
    group_saliency,
    weight_saliency,
)
from sparse_runtime.spec import Structure


def make(rows: int, cols: int, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    inputs = torch.randn(4 * cols, cols, generator=generator, dtype=torch.float64)
    mixed = inputs @ torch.randn(cols, cols, generator=generator, dtype=torch.float64)
    return Problem(weight, mixed.T @ mixed / len(mixed))


def optimum(problem: Problem, row: int, kept: list[int]) -> Tensor:
    """Least squares on a support, by solving its normal equations."""
    solved = torch.zeros_like(problem.target[row])
    if kept:
        right = (problem.target[row] @ problem.hessian)[kept]
        solved[kept] = torch.linalg.solve(problem.hessian[kept][:, kept], right)
    return solved


def error_of(problem: Problem, row: int, weight: Tensor) -> float:
    away = weight - problem.target[row]
    return float(away @ problem.hessian @ away)


def test_saliency_of_one_weight_is_the_error_of_its_best_removal() -> None:
    problem = make(3, 6)
    saliency = weight_saliency(problem.target, problem.inverse())
    for row, col in product(range(3), range(6)):
        kept = [j for j in range(6) if j != col]
        best = error_of(problem, row, optimum(problem, row, kept))
        assert saliency[row, col].item() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("dropped", [[2], [0, 3], [1, 2, 5], [0, 1, 2, 3, 4, 5]])
def test_saliency_of_a_group_is_the_error_of_its_best_removal(dropped: list[int]) -> None:
    problem = make(2, 6)
    inverse = problem.inverse()[dropped][:, dropped]
    saliency = group_saliency(problem.target[:, dropped], inverse)
    for row in range(2):
        kept = [j for j in range(6) if j not in dropped]
        best = error_of(problem, row, optimum(problem, row, kept))
        assert saliency[row].item() == pytest.approx(best, rel=1e-9)


# 5 x 7: both edges have a block that is cut.
@pytest.mark.parametrize("structure", ["block:1x2", "block:2x3", "block:4x1"])
def test_saliency_of_a_block_adds_up_its_rows(structure: str) -> None:
    problem, spec = make(5, 7), Structure.parse(structure)
    saliency = block_saliency(problem.target, problem.inverse(), spec)
    assert saliency.shape == (-(-5 // spec.rows), -(-7 // spec.cols))
    for i, j in product(*map(range, saliency.shape)):
        lost = range(j * spec.cols, min(7, (j + 1) * spec.cols))
        kept = [col for col in range(7) if col not in lost]
        rows = range(i * spec.rows, min(5, (i + 1) * spec.rows))
        best = sum(error_of(problem, row, optimum(problem, row, kept)) for row in rows)
        assert saliency[i, j].item() == pytest.approx(best, rel=1e-9)


def test_removal_gives_the_optimum_and_the_inverse_of_what_is_left() -> None:
    problem = make(1, 6)
    weight, inverse = problem.target[0].clone(), problem.inverse()
    for step, col in enumerate([3, 0, 5], start=1):
        remove(weight, inverse, col)
        kept = [j for j in range(6) if j not in [3, 0, 5][:step]]
        assert torch.allclose(weight, optimum(problem, 0, kept), atol=1e-10)
        assert torch.allclose(
            inverse[kept][:, kept], torch.linalg.inv(problem.hessian[kept][:, kept]), atol=1e-10
        )


# 2:4, 1:4 and 2:5 compare all subsets; 6:16 (8008 subsets) goes one by one; a last group of 3.
@pytest.mark.parametrize(("structure", "size"), [("2:4", 4), ("1:4", 4), ("2:5", 5), ("2:4", 3)])
def test_group_of_nm_is_the_best_by_brute_force(structure: str, size: int) -> None:
    spec, problem = Structure.parse(structure), make(6, size, seed=2)
    mask = choose_nm(problem.target, problem.inverse(), spec)
    for row in range(6):
        errors = {
            kept: error_of(problem, row, optimum(problem, row, list(kept)))
            for kept in combinations(range(size), min(spec.n, size))
        }
        assert tuple(mask[row].nonzero().flatten().tolist()) == min(errors, key=errors.__getitem__)


def test_long_groups_drop_one_by_one() -> None:
    spec, problem = Structure.parse("6:16"), make(3, 16)
    mask = choose_nm(problem.target, problem.inverse(), spec)
    assert mask.sum(1).tolist() == [6, 6, 6]
    for row in range(3):
        one = Problem(problem.target[row : row + 1], problem.hessian)
        greedy = exact_obs(one, Pattern.parse("6:16"))
        assert torch.equal(mask[row], greedy.mask[0])


def test_equal_saliencies_keep_the_lower_index() -> None:
    ones = torch.ones(1, 4, dtype=torch.float64)
    assert choose_nm(ones, torch.eye(4, dtype=torch.float64), Structure.parse("2:4")).tolist() == [
        [True, True, False, False]
    ]
    result = exact_obs(Problem(ones, torch.eye(4, dtype=torch.float64)), Pattern.parse("2:4"))
    assert result.mask.tolist() == [[True, True, False, False]]


def test_exact_obs_ends_at_the_optimum_of_its_support() -> None:
    problem = make(4, 8)
    result = exact_obs(problem, Pattern.parse("unstructured@0.6"))
    assert int((~result.mask).sum()) == round(0.6 * 32)
    for row in range(4):
        kept = result.mask[row].nonzero().flatten().tolist()
        assert torch.allclose(result.weight[row], optimum(problem, row, kept), atol=1e-9)


def test_exact_obs_of_a_diagonal_hessian_is_weighted_magnitude() -> None:
    diagonal = torch.tensor([1.0, 4.0, 0.25, 9.0, 1.0, 2.0], dtype=torch.float64)
    target = make(3, 6).target
    result = exact_obs(Problem(target, diagonal.diag()), Pattern.parse("unstructured@0.5"))
    scores = target.abs() * diagonal.sqrt()
    assert torch.equal(result.mask, Pattern.parse("unstructured@0.5").mask(scores))
    assert torch.equal(result.weight, target * result.mask)


def test_exact_obs_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"'exact_obs': removes single weights, got block:1x4"):
        exact_obs(make(2, 8), Pattern.parse("block:1x4@0.5"))
    large = Problem(torch.zeros(600, 600), torch.eye(600, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"for small matrices, got \[600, 600\]"):
        exact_obs(large, Pattern.parse("2:4"))
