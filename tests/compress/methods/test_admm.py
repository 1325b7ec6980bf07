"""ADMM on a quadratic with a known answer, and inside a training; masked training beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress.patterns import Pattern
from sparse_runtime.compress.targets import encoder_linears
from sparse_runtime.compress.training.pruners.admm import Splitting
from sparse_runtime.compress.training.pruners.masked_ste import StraightMask
from sparse_runtime.compress.training.pruners.projections import projection
from sparse_runtime.formats import cast_values
from sparse_runtime.spec import Structure, ValueSpec

ADMM = {"method": "admm", "structure": "2:4", "rho": 0.01}
INTEGERS = {"method": "admm-integers", "values": "int8", "rho": 0.01}
STE = {"method": "masked-ste", "structure": "2:4"}
TWO_OF_FOUR = projection(Structure("nm", n=2, m=4), None, None)


def quadratic(seed: int) -> tuple[Tensor, Tensor]:
    """H [4, 4] and the unconstrained minimum [1, 4] of 1/2 (w - m) H (w - m)^T."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    hessian = root @ root.t() / 4 + torch.eye(4, dtype=torch.float64)
    return hessian, torch.randn(1, 4, generator=generator, dtype=torch.float64)


def best_pair(hessian: Tensor, center: Tensor) -> float:
    """Least value with two of four weights, all supports and their normal equations tried."""
    values = []
    for support in itertools.combinations(range(4), 2):
        free = torch.zeros(4, dtype=torch.bool)
        free[list(support)] = True
        weight = torch.zeros(1, 4, dtype=torch.float64)
        target = (hessian @ center[0])[free]
        weight[0, free] = torch.linalg.solve(hessian[free][:, free], target)
        values.append(value(hessian, center, weight))
    return min(values)


def value(hessian: Tensor, center: Tensor, weight: Tensor) -> float:
    return float(0.5 * (weight - center) @ hessian @ (weight - center).t())


@pytest.mark.parametrize("seed", range(4))
def test_converges_to_the_constrained_minimum_of_a_quadratic(seed: int) -> None:
    hessian, center = quadratic(seed)
    rho, eye = 4.0, torch.eye(4, dtype=torch.float64)
    weight = center.clone()
    splitting = Splitting(weight, TWO_OF_FOUR)
    for _ in range(300):
        # The step of W, exactly: (H + rho I) w = H m + rho (Z - U).
        pulled = hessian @ center[0] + rho * (splitting.copy - splitting.dual)[0]
        weight = torch.linalg.solve(hessian + rho * eye, pulled).unsqueeze(0)
        splitting.update(weight)
    assert splitting.residual(weight) < 1e-6
    assert int((splitting.copy != 0).sum()) == 2
    found = value(hessian, center, splitting.copy)
    assert found <= value(hessian, center, TWO_OF_FOUR(center)) + 1e-9
    assert found <= 1.05 * best_pair(hessian, center)


def test_update_and_distance_by_hand() -> None:
    weight = torch.tensor([[4.0, 3.0, -2.0, 1.0]])
    splitting = Splitting(weight, TWO_OF_FOUR)
    assert splitting.copy.tolist() == [[4, 3, 0, 0]]
    assert splitting.dual.tolist() == [[0, 0, -2, 1]]
    # Proj([4, 3, -4, 2]) keeps the first and, of +-4, both of 4: the third is in, the second out.
    splitting.update(weight)
    assert splitting.copy.tolist() == [[4, 0, -4, 0]]
    assert splitting.dual.tolist() == [[0, 3, 0, 2]]
    trained = torch.zeros(1, 4, requires_grad=True)
    distance = splitting.distance(trained)
    distance.backward()
    assert distance.item() == 0.5 * (16 + 9 + 16 + 4)
    assert torch.equal(trained.grad, -(splitting.copy - splitting.dual))


def test_updates_come_once_an_epoch(drive: Callable[..., Any]) -> None:
    run, seen = drive(ADMM), []
    run.run(12, lambda _: seen.append(next(iter(run.pruner.splittings.values())).dual))
    changed = [step for step in range(1, 12) if not torch.equal(seen[step], seen[step - 1])]
    assert changed == [4, 8]
    twice, seen = drive({**ADMM, "updates": 2}), []
    twice.run(12, lambda _: seen.append(next(iter(twice.pruner.splittings.values())).dual))
    changed = [step for step in range(1, 12) if not torch.equal(seen[step], seen[step - 1])]
    assert changed == [2, 4, 6, 8, 10]


def test_penalty_is_half_rho_times_the_distance(drive: Callable[..., Any]) -> None:
    run = drive({**ADMM, "rho": 0.5})
    run.run(6)
    total = sum(
        float((linear.weight.detach() - splitting.copy + splitting.dual).square().sum())
        for linear, splitting in zip(
            run.training.linears.values(), run.pruner.splittings.values(), strict=True
        )
    )
    assert run.pruner.penalty().item() == pytest.approx(0.25 * total, rel=1e-5)


def test_pull_brings_weights_to_the_pattern(drive: Callable[..., Any]) -> None:
    def residual(rho: float) -> float:
        run = drive({**ADMM, "rho": rho}, 40, learning_rate=1e-3)
        run.run(40)
        return run.pruner.metrics()["admm_residual"]

    assert residual(1.0) < 0.7 * residual(1e-6)


@pytest.mark.parametrize("structure", ["2:4", "block:1x4@0.5", "unstructured@0.9"])
def test_finish_projects(drive: Callable[..., Any], structure: str) -> None:
    run = drive({**ADMM, "structure": structure}, 5)
    run.run(5)
    trained = {name: linear.weight.detach().abs() for name, linear in run.training.linears.items()}
    pattern = Pattern.parse(structure)
    masks = {name: pattern.mask(weight) for name, weight in trained.items()}
    for name, weight in run.finish().items():
        assert torch.equal(weight != 0, masks[name])


def test_finish_projects_on_integers_too(drive: Callable[..., Any]) -> None:
    run = drive({**ADMM, "values": "int4", "scales": "chunk:16", "scale": "search"}, 5)
    run.run(5)
    for name, weight in run.finish().items():
        assert (weight.view(-1, 4) != 0).sum(1).max() <= 2, name
        for chunk in weight.split(16):
            assert len(chunk.unique()) <= 15
    alone = drive(INTEGERS, 5)
    alone.run(5)
    for weight in alone.finish().values():
        integers, scales = cast_values(weight, ValueSpec("int8", "chunk", 32))
        spread = scales.repeat_interleave(32)[: len(weight), None]
        torch.testing.assert_close(integers * spread, weight, rtol=1e-5, atol=0)


@torch.no_grad()
def halve(model: nn.Module) -> None:
    for linear in encoder_linears(model).values():
        linear.weight.copy_(TWO_OF_FOUR(linear.weight))


def test_integers_keep_the_zeros_that_weights_start_with(drive: Callable[..., Any]) -> None:
    run = drive(INTEGERS, 6, start=halve)
    zeros = {name: one == 0 for name, one in run.used_weights().items()}
    assert all(one.double().mean() == 0.5 for one in zeros.values())
    run.run(6, lambda step: _stay_zero(run, zeros))
    assert all((weight[zeros[name]] == 0).all() for name, weight in run.finish().items())


def _stay_zero(run: Any, zeros: dict[str, Tensor]) -> None:
    assert all((run.used_weights()[name][one] == 0).all() for name, one in zeros.items())


@pytest.mark.parametrize("pruning", [ADMM, INTEGERS, STE, {**STE, "every": 2}], ids=str)
def test_resumption_is_exact(resumes_exactly: Callable[..., None], pruning: dict[str, Any]) -> None:
    resumes_exactly(pruning, 8, 5)


def test_refusals(drive: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"pruning\.rho: expected a number above 0"):
        drive({**ADMM, "rho": 0.0})
    with pytest.raises(ValueError, match="expected int8, int4 or null"):
        drive({**ADMM, "values": "fp16"})
    with pytest.raises(ValueError, match="needs int8 or int4"):
        drive({"method": "admm-integers"})
    with pytest.raises(ValueError, match="say uniform"):
        drive({**ADMM, "scope": "global"})


def test_a_kept_mask_is_that_of_the_beginning(drive: Callable[..., Any]) -> None:
    run = drive(STE)
    pattern = Pattern.parse("2:4")
    first = {name: one.clone() for name, one in run.masks().items()}
    originals = {
        name: linear.parametrizations.weight.original.detach()
        for name, linear in run.training.linears.items()
    }
    assert all(torch.equal(first[name], pattern.mask(originals[name].abs())) for name in first)

    def check(step: int) -> None:
        assert all(torch.equal(first[name], one) for name, one in run.masks().items())
        assert all((run.used_weights()[name][~one] == 0).all() for name, one in first.items())

    run.run(6, check)


def test_a_moving_mask_is_that_of_the_trained_weights(drive: Callable[..., Any]) -> None:
    run = drive({**STE, "every": 3}, 12)
    pattern, moved = Pattern.parse("2:4"), []

    def check(step: int) -> None:
        for name, mask in run.masks().items():
            assert (run.used_weights()[name][~mask] == 0).all()
            assert (mask.view(-1, 4).sum(1) == 2).all()
        moved.append(
            sum(
                int((now != before).sum())
                for now, before in zip(run.masks().values(), state, strict=True)
            )
        )

    state = [mask.clone() for mask in run.masks().values()]
    run.run(12, check)
    assert moved[:3] == [0, 0, 0] and moved[-1] > 0
    run.pruner.begin_step(12, 12)
    for name, mask in run.masks().items():
        original = run.training.linears[name].parametrizations.weight.original.detach()
        assert torch.equal(mask, pattern.mask(original.abs()))


def test_straight_mask_gives_masked_weights_their_gradient() -> None:
    weight, pull = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4)
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    masked = StraightMask(mask)(weight)
    (masked * pull).sum().backward()
    assert torch.equal(masked, torch.where(mask, weight, 0.0))
    assert torch.equal(weight.grad, pull)
