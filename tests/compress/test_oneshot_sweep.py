"""The sweep over columns, refit and polish, against closed forms and brute force."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from sparse_runtime.compress import Pattern
from sparse_runtime.compress.oneshot.alps import alps_mask
from sparse_runtime.compress.oneshot.hessian import InputStatistics
from sparse_runtime.compress.oneshot.problem import Problem
from sparse_runtime.compress.oneshot.quantizer import Grid, fit_grid
from sparse_runtime.compress.oneshot.refine import polish, refit
from sparse_runtime.compress.oneshot.selection import chooser
from sparse_runtime.compress.oneshot.solvers import Method, solve
from sparse_runtime.compress.oneshot.sweep import fixed, sweep
from sparse_runtime.formats import cast_values
from sparse_runtime.spec import ValueSpec

INT4, INT8 = ValueSpec.parse("int4"), ValueSpec.parse("int8")


def make(rows: int, cols: int, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    inputs = torch.randn(4 * cols, cols, generator=generator, dtype=torch.float64)
    mixing = torch.randn(cols, cols, generator=generator, dtype=torch.float64) / cols**0.5
    mixed = inputs @ (torch.eye(cols, dtype=torch.float64) + mixing)
    return Problem(weight, mixed.T @ mixed / len(mixed))


def diagonal(rows: int, cols: int) -> Problem:
    scale = torch.linspace(0.5, 3.0, cols, dtype=torch.float64)
    return Problem(make(rows, cols).target, scale.diag())


def prune(problem: Problem, text: str, step: int = 128) -> Tensor:
    pattern = Pattern.parse(text)
    return sweep(problem, *chooser(pattern, step)).weight


def grid_of(problem: Problem, spec: ValueSpec) -> Grid:
    return fit_grid(problem.target, spec, search=False)


def test_each_column_is_updated_as_the_surgeon_would() -> None:
    """With a mask that is known, every column's removal is one exact update of those behind it."""
    problem = make(3, 6)
    mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    result = sweep(problem, fixed(mask), 6)
    for row in range(3):
        left, inverse = problem.target[row].clone(), problem.inverse()
        for col in range(6):
            error = left[col] if not mask[row, col] else 0.0
            line = inverse[col].clone()
            left = left - error / line[col] * line
            # The column is fixed now, pruned or not.
            inverse = inverse - torch.outer(line, line) / line[col]
        assert torch.allclose(result.weight[row], left * mask[row], atol=1e-9)


# 200 columns: a second lazy block, cut short. 1x4 and 4x2: blocks within ranges of columns.
@pytest.mark.parametrize("text", ["2:4", "unstructured@0.7", "block:1x4@0.8", "block:4x2@0.5"])
def test_masks_have_the_pattern_and_exact_counts(text: str) -> None:
    problem, pattern = make(12, 200), Pattern.parse(text)
    result = sweep(problem, *chooser(pattern, 64))
    assert torch.equal(result.weight != 0, result.mask)
    reference = pattern.mask(problem.target)
    assert int(result.mask.sum()) == int(reference.sum())
    # The pattern's own projection finds nothing to prune in it.
    assert torch.equal(pattern.mask(result.mask.double()), result.mask)


@pytest.mark.parametrize("text", ["2:4", "unstructured@0.5", "block:1x4@0.5"])
def test_diagonal_hessian_prunes_by_weighted_magnitude_and_changes_nothing(text: str) -> None:
    problem, pattern = diagonal(4, 16), Pattern.parse(text)
    scores = problem.target.abs() * problem.hessian.diagonal().sqrt()
    assert torch.allclose(prune(problem, text), problem.target * pattern.mask(scores), atol=1e-12)


@pytest.mark.parametrize("text", ["2:4", "unstructured@0.6", "block:1x4@0.6"])
def test_second_order_loses_less_than_magnitude(text: str) -> None:
    problem, pattern = make(32, 64), Pattern.parse(text)
    magnitude = problem.error(problem.target * pattern.mask(problem.target.abs()))
    swept = sweep(problem, *chooser(pattern, 8))
    refitted = refit(problem, swept.weight, swept.mask)
    assert problem.error(swept.weight) < 0.9 * magnitude
    assert problem.error(refitted) < problem.error(swept.weight)


@pytest.mark.parametrize("spec", [INT4, INT8])
def test_gptq_of_a_diagonal_hessian_is_rounding(spec: ValueSpec) -> None:
    problem = diagonal(4, 16)
    keep = torch.ones(4, 16, dtype=torch.bool)
    result = sweep(problem, fixed(keep), 16, grid_of(problem, spec))
    integers, scales = cast_values(problem.target, spec)
    assert scales is not None and result.scales is not None
    assert torch.equal(result.scales, scales)
    assert torch.allclose(result.weight, integers * scales.double().unsqueeze(1), atol=1e-12)


def test_gptq_loses_less_than_rounding_and_polish_less_still() -> None:
    problem = make(32, 64)
    grid = grid_of(problem, INT4)
    keep = torch.ones(32, 64, dtype=torch.bool)
    rounded = grid.round(problem.target)
    swept = sweep(problem, fixed(keep), 64, grid).weight
    polished = polish(problem, swept, keep, grid)
    assert problem.error(swept) < 0.8 * problem.error(rounded)
    assert problem.error(polished) < problem.error(swept)
    assert torch.equal(grid.round(polished), polished)


def test_polish_of_one_row_cannot_be_bettered_by_moving_one_integer() -> None:
    problem = make(1, 5)
    grid, keep = grid_of(problem, INT4), torch.tensor([[True, True, False, True, True]])
    done = polish(problem, grid.round(problem.target) * keep, keep, grid, passes=50)
    for col, integer in product([0, 1, 3, 4], range(-7, 8)):
        other = done.clone()
        other[0, col] = integer * grid.scales[0]
        assert problem.error(other) >= problem.error(done) - 1e-12
    assert done[0, 2] == 0


def test_refit_reaches_the_normal_equations() -> None:
    problem = make(4, 12)
    mask = torch.rand(4, 12, generator=torch.Generator().manual_seed(3)) < 0.4
    mask[0] = False  # a row without a weight: nothing to solve
    solved = refit(problem, problem.target * mask, mask, steps=200, tolerance=1e-12)
    assert torch.equal(solved != 0, mask)
    for row in range(1, 4):
        kept = mask[row]
        right = (problem.target[row] @ problem.hessian)[kept]
        wanted = torch.linalg.solve(problem.hessian[kept][:, kept], right)
        assert torch.allclose(solved[row][kept], wanted, atol=1e-8)


# 8 inputs: every one of the 36 2:4 masks of each row, against what the solvers find.
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nm_solvers_against_every_mask(seed: int) -> None:
    pattern, problem = Pattern.parse("2:4"), make(16, 8, seed)
    pairs = [m for m in product([False, True], repeat=4) if sum(m) == 2]
    masks = [torch.tensor([a + b]) for a, b in product(pairs, pairs)]
    rows = [Problem(row.unsqueeze(0), problem.hessian) for row in problem.target]
    best = sum(min(at_optimum(row, mask) for mask in masks) for row in rows)
    magnitude = at_optimum(problem, pattern.mask(problem.target.abs()))
    swept = at_optimum(problem, sweep(problem, *chooser(pattern, 4)).mask)
    assert best <= swept < 0.85 * magnitude
    assert best <= at_optimum(problem, alps_mask(problem, pattern)) < 1.05 * best


def at_optimum(problem: Problem, mask: Tensor) -> float:
    return problem.error(refit(problem, problem.target * mask, mask, steps=100))


def test_alps_of_a_diagonal_hessian_is_weighted_magnitude() -> None:
    problem = diagonal(4, 16)
    for text in ("2:4", "unstructured@0.5", "block:1x4@0.5"):
        pattern = Pattern.parse(text)
        scores = problem.target.abs() * problem.hessian.diagonal().sqrt()
        assert torch.equal(alps_mask(problem, pattern), pattern.mask(scores))


def test_wanda_ranks_the_weights_of_one_output_alone() -> None:
    problem = make(4, 10)
    weight = problem.target * torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    inputs = InputStatistics(10)
    inputs.add(torch.randn(50, 10) * torch.arange(1, 11))
    pattern = Pattern.parse("unstructured@0.7")
    solved = solve("layer", weight.float(), inputs, pattern=pattern, method="wanda")
    assert solved.mask.sum(1).tolist() == [3, 3, 3, 3]
    scores = weight.abs() * inputs.norms
    assert torch.equal(solved.mask, scores >= scores.sort(1).values[:, 7:8])


@pytest.mark.parametrize("method", ["alps", "obs", "exact_obs", "wanda"])
@pytest.mark.parametrize("to", ["2:4", "unstructured@0.5"])
def test_inputs_that_no_text_feeds_keep_no_weights(method: Method, to: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 12, generator=generator)
    weight[:, ::4] *= 100
    tokens = torch.randn(64, 12, generator=generator)
    tokens[:, ::4] = 0
    statistics = InputStatistics(12)
    statistics.add(tokens)
    found = solve("a", weight, statistics, pattern=Pattern.parse(to), method=method)
    assert not found.weight[:, ::4].any()
    # All that the pattern allows goes to the others: of three in a group two, or half of all 72.
    assert int((found.weight != 0).sum()) == 36
    lost, whole = (tokens @ (found.weight - weight).T).norm(), (tokens @ weight.T).norm()
    assert found.error == pytest.approx(float(lost / whole), rel=0.05)  # damped by a hundredth


# Scales of every granularity: one for all, one a row, one for two rows, one for five columns.
@pytest.mark.parametrize("scales", ["tensor", "row", "chunk:2", "group:5"])
def test_grid_without_search_is_that_of_the_formats(scales: str) -> None:
    weight = make(5, 12).target.float()
    spec = ValueSpec.parse("int4", scales)
    grid = fit_grid(weight, spec, search=False)
    integers, expected = cast_values(weight, spec)
    assert expected is not None
    assert torch.equal(grid.scales, expected)
    assert torch.equal((grid.round(weight) / grid.expanded).round().to(torch.int8), integers)


@pytest.mark.parametrize("scales", ["tensor", "row", "chunk:2", "group:5"])
def test_search_of_scales_never_loses_more(scales: str) -> None:
    weight, spec = make(5, 12).target, ValueSpec.parse("int4", scales)
    weight[0, 0] = 20.0  # an outlier that a smaller scale would rather clip
    importance = torch.linspace(0.1, 1.0, 12, dtype=torch.float64)
    plain = fit_grid(weight, spec, importance, search=False)
    searched = fit_grid(weight, spec, importance)

    def lost(grid: Grid) -> float:
        return float(((grid.round(weight) - weight).square() * importance).sum())

    assert lost(searched) <= lost(plain)
    assert (lost(searched) < lost(plain)) == bool((searched.scales != plain.scales).any())


def test_grid_refuses_floats() -> None:
    with pytest.raises(ValueError, match="expected symmetric integers, int8 or int4"):
        fit_grid(torch.ones(2, 2), ValueSpec.parse("bf16"))
