"""Proximal steps against minimisers, penalties by hand, exact zeros, frozen masks, resumption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparse_runtime.compress.patterns import Pattern
from sparse_runtime.compress.training.pruners.group_lasso import group_norms, reweighted, shrunk
from sparse_runtime.formats.block import to_blocks
from sparse_runtime.spec import Structure

LASSO = {"method": "group-lasso", "structure": "block:1x8@0.5", "regularization": 0.01}
PROXIMAL = {**LASSO, "by": "proximal", "regularization": 0.3}

# Rows and columns of sub-matrices, and blocks; 7 columns leave groups that are cut.
STRUCTURES = ["block:1x4", "block:2x1", "block:2x3"]


@pytest.mark.parametrize("text", STRUCTURES)
def test_shrunk_is_the_minimiser(text: str) -> None:
    structure = Structure.parse(text)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    norms = group_norms(weight, structure)
    amounts = torch.rand(norms.shape, generator=generator, dtype=torch.float64) * 2
    found = shrunk(weight, structure, amounts)
    before, after = to_blocks(weight, structure), to_blocks(found, structure)

    def cost(blocks: torch.Tensor) -> torch.Tensor:
        fit = 0.5 * (blocks - before).square().sum(-1)
        return fit + amounts * torch.linalg.vector_norm(blocks, dim=-1)

    least = cost(after)
    for scale in (1e-3, 0.1, 1.0):
        noise = torch.randn(before.shape, generator=generator, dtype=torch.float64) * scale
        assert (cost(after + noise) >= least).all()
    assert (cost(before) >= least).all() and (cost(torch.zeros_like(before)) >= least).all()
    gone = norms <= amounts
    assert gone.any() and not gone.all()
    assert (after[gone] == 0).all() and not after[gone].signbit().any()
    # What stays meets the first-order condition: v - w + amount v / ||v|| = 0.
    kept = after[~gone]
    slope = amounts[~gone].unsqueeze(1) * kept / kept.norm(dim=1, keepdim=True)
    torch.testing.assert_close(kept + slope, before[~gone])


def test_reweighting_by_hand() -> None:
    norms = torch.tensor([[0.0, 0.5], [2.0, 3.0]])
    expected = [[10.0, 1 / 0.6], [1 / 2.1, 1 / 3.1]]
    assert reweighted(norms, 0.1, "norm").tolist() == [pytest.approx(row) for row in expected]
    squares = reweighted(norms, 0.1, "square")
    assert squares.tolist() == [pytest.approx([10.0, 1 / 0.35]), pytest.approx([1 / 4.1, 1 / 9.1])]


def test_penalty_and_its_gradient_by_hand(drive: Callable[..., Any]) -> None:
    run = drive({**LASSO, "structure": "block:4x2@0.5", "regularization": 0.7, "eps": 0.01})
    run.pruner.begin_step(0, 12)
    structure, expected = Structure.parse("block:4x2"), 0.0
    for linear in run.training.linears.values():
        norms = group_norms(linear.weight.detach().double(), structure)
        expected += float((norms / (norms + 0.01)).sum())
    penalty = run.pruner.penalty()
    assert penalty.item() == pytest.approx(0.7 * expected, rel=1e-5)
    penalty.backward()
    linear = next(iter(run.training.linears.values()))
    original = linear.parametrizations.weight.original
    block = original.detach()[:4, :2]
    slope = 0.7 * block / block.norm() / (block.norm() + 0.01)
    torch.testing.assert_close(original.grad[:4, :2], slope)


def test_milestones_estimate_anew_and_end_with_the_removal(drive: Callable[..., Any]) -> None:
    run, seen = drive({**LASSO, "milestones": 3, "until": 0.5}, 24), []

    def check(step: int) -> None:
        weights = run.pruner._weights
        seen.append(next(iter(weights.values())) if weights else None)

    run.run(24, check)
    changed = [0] + [s for s in range(1, 12) if not torch.equal(seen[s], seen[s - 1])]
    assert changed == [0, 4, 8]
    assert all(one is None for one in seen[12:]) and run.pruner.penalty() is None


@pytest.mark.parametrize("pruning", [LASSO, PROXIMAL], ids=["gradient", "proximal"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_mask_is_frozen_and_fits(
    drive: Callable[..., Any], pruning: dict[str, Any], scope: str
) -> None:
    run = drive({**pruning, "scope": scope})
    frozen: dict[str, torch.Tensor] = {}

    def check(step: int) -> None:
        masks, used = run.masks(), run.used_weights()
        assert all((used[name][~mask] == 0).all() for name, mask in masks.items())
        if step == 6:
            frozen.update({name: mask.clone() for name, mask in masks.items()})
        if step < 6:
            assert run.pruner.metrics()["sparsity"] == 0
        else:
            assert all(torch.equal(frozen[name], mask) for name, mask in masks.items())

    run.run(12, check)
    assert run.pruner.metrics()["sparsity"] == pytest.approx(0.5, abs=1e-3)
    for name, weight in run.finish().items():
        zero = group_norms(weight, Structure.parse("block:1x8")) == 0
        assert torch.equal(weight == 0, zero.repeat_interleave(8, dim=1)), name
        if scope == "uniform":
            assert torch.equal(Pattern.parse("block:1x8@0.5").mask(weight.abs()), weight != 0)


def test_proximal_steps_give_exact_zeros_and_gradients_do_not(drive: Callable[..., Any]) -> None:
    shrinking = drive({**PROXIMAL, "regularization": 3.0, "until": 0.9}, 20)
    pulling = drive({**LASSO, "regularization": 3.0, "until": 0.9}, 20)
    shrinking.run(17)
    pulling.run(17)
    assert shrinking.pruner.metrics()["zero_groups"] > 0.1
    assert pulling.pruner.metrics()["zero_groups"] == 0


def test_penalty_spreads_the_norms(drive: Callable[..., Any]) -> None:
    # Weak groups get weaker: what removing half of the groups loses falls.
    def lost(regularization: float) -> float:
        run = drive(
            {**LASSO, "regularization": regularization, "until": 0.9}, 30, learning_rate=1e-3
        )
        run.run(26)
        shares = []
        for linear in run.training.linears.values():
            norms = group_norms(linear.weight.detach(), Structure.parse("block:1x8")).flatten()
            power = norms.square().sort().values
            shares.append(float(power[: len(power) // 2].sum() / power.sum()))
        return sum(shares)

    assert lost(1e-3) < 0.5 * lost(0.0)


@pytest.mark.parametrize("pruning", [LASSO, PROXIMAL], ids=["gradient", "proximal"])
@pytest.mark.parametrize("at", [3, 9])
def test_resumption_is_exact(
    resumes_exactly: Callable[..., None], pruning: dict[str, Any], at: int
) -> None:
    resumes_exactly(pruning, 12, at)


def test_refusals(drive: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="works on groups"):
        drive({**LASSO, "structure": "2:4"})
    with pytest.raises(ValueError, match=r"pruning\.until: expected"):
        drive({**LASSO, "until": 1.0})
    with pytest.raises(ValueError, match=r"pruning\.eps: expected a number above 0"):
        drive({**LASSO, "eps": 0.0})
