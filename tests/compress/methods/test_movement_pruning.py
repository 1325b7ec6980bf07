"""Score gradients by hand, masks at every step, soft thresholds, blocks, resumption."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress.patterns import Pattern
from sparse_runtime.compress.training.pruners.movement import (
    ScoredMask,
    attach_scores,
    keep_above,
)
from sparse_runtime.formats.block import to_blocks
from sparse_runtime.spec import Structure

TOP_K = {
    "method": "movement",
    "structure": "unstructured@0.75",
    "schedule": {"begin": 0.1, "end": 0.5, "stop": 1.0},
}
SOFT = {
    "method": "soft-movement",
    "regularization": 50.0,
    "score_learning_rate": 0.5,
    "schedule": {"begin": 0.0, "end": 0.5, "stop": 1.0},
}


def test_gradients_of_scores_and_weight_by_hand() -> None:
    linear = nn.Linear(3, 2, bias=False)
    mask = attach_scores({"l": linear}, {})["l"]
    mask.mask.copy_(torch.tensor([[True, False, True], [False, True, True]]))
    weight = linear.parametrizations.weight.original
    x, pull = torch.randn(5, 3), torch.randn(5, 2)
    (linear(x) * pull).sum().backward()
    of_masked = pull.t() @ x  # dL/dW_masked of y = x W^T
    torch.testing.assert_close(mask.scores.grad, of_masked * weight.detach())
    torch.testing.assert_close(weight.grad, of_masked * mask.mask)


def test_gradients_equal_those_of_a_factor_mask() -> None:
    # Were the mask a float factor, autograd would give it the gradient that scores get.
    weight, scored = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    module = ScoredMask(weight.detach(), Structure("unstructured"))
    module.mask.copy_(scored > 0)
    pull = torch.randn(4, 6)
    (module(weight).square() * pull).sum().backward()
    factor = module.mask.float().requires_grad_()
    ((weight.detach() * factor).square() * pull).sum().backward()
    torch.testing.assert_close(module.scores.grad, factor.grad)


# Whole blocks; and edges where blocks are cut.
@pytest.mark.parametrize("shape", [(4, 8), (5, 7)])
def test_a_blocks_score_gathers_its_weights(shape: tuple[int, int]) -> None:
    structure = Structure.parse("block:2x4")
    weight = torch.randn(shape)
    module = ScoredMask(weight, structure)
    pull = torch.randn(shape)
    (module(weight) * pull).sum().backward()
    torch.testing.assert_close(module.scores.grad, to_blocks(weight * pull, structure).sum(-1))
    with torch.no_grad():
        module.scores.copy_(torch.randn(module.scores.shape))
    kept = Pattern(structure, 0.5).mask(module.spread_scores(), reduce="sum")
    count = module.scores.numel() - round(0.5 * module.scores.numel())
    best = module.scores.detach().flatten().topk(count).indices
    assert sorted(best.tolist()) == (
        to_blocks(kept.float(), structure).amax(-1).flatten().nonzero().flatten().tolist()
    )


@pytest.mark.parametrize("structure", ["unstructured@0.75", "2:4", "block:4x4@0.5"])
def test_masks_hold_at_every_step(drive: Callable[..., Any], structure: str) -> None:
    run = drive({**TOP_K, "structure": structure})
    pattern, seen = Pattern.parse(structure), []

    def check(step: int) -> None:
        masks, used = run.masks(), run.used_weights()
        assert len(masks) == 12
        assert all((used[name][~mask] == 0).all() for name, mask in masks.items())
        seen.append(run.pruner.metrics()["sparsity"])

    run.run(12, check)
    assert seen[0] == 0 and seen == sorted(seen)
    assert seen[6:] == [pytest.approx(pattern.final_sparsity, abs=1e-9)] * 6
    for name, weight in run.finish().items():
        scores = weight.abs() + (weight != 0)
        assert torch.equal(pattern.mask(scores), weight != 0), name


# Masks that move until the last step, and such that rest from the middle on.
@pytest.mark.parametrize("stop", [1.0, 0.5])
def test_masks_are_the_top_scores(drive: Callable[..., Any], stop: float) -> None:
    run = drive({**TOP_K, "schedule": {**TOP_K["schedule"], "stop": stop}})
    run.run(12)
    for mask in run.pruner.masks.values():
        scores = mask.scores.detach()
        kept, gone = scores[mask.mask], scores[~mask.mask]
        assert kept.numel() == scores.numel() // 4
        assert kept.min() >= gone.max() and scores.unique().numel() > scores.numel() // 2
    soft = drive({**SOFT, "schedule": {**SOFT["schedule"], "stop": stop}})
    soft.run(12)
    for mask in soft.pruner.masks.values():
        assert torch.equal(mask.mask, keep_above(mask.scores.detach(), 0.1, 0.005))


def test_soft_threshold_penalty_and_floor(drive: Callable[..., Any]) -> None:
    run = drive({**SOFT, "threshold": 0.3, "floor": 0.02})
    assert run.pruner.penalty() is None
    run.run(3)
    progress = 1 - (1 - 2 / 6) ** 3
    means = [torch.sigmoid(mask.scores).mean().item() for mask in run.pruner.masks.values()]
    expected = 50 * progress * sum(means) / len(means)
    assert run.pruner.penalty().item() == pytest.approx(expected, rel=1e-5)

    def check(step: int) -> None:
        for mask in run.pruner.masks.values():
            assert int(mask.mask.sum()) >= math.ceil(0.02 * mask.mask.numel())

    run.run(12, check)
    assert run.pruner.metrics()["sparsity"] > 0.5
    assert all((weight != 0).any() for weight in run.finish().values())


def test_penalty_pushes_scores_under_the_threshold_and_the_loss_holds_some(
    drive: Callable[..., Any],
) -> None:
    weak, strong = drive({**SOFT, "regularization": 0.0}), drive({**SOFT, "regularization": 500.0})
    weak.run(12)
    strong.run(12)
    assert strong.pruner.metrics()["sparsity"] > weak.pruner.metrics()["sparsity"]


def test_keep_above() -> None:
    scores = torch.tensor([[-3.0, 0.0], [3.0, -1.0]])
    assert keep_above(scores, 0.3, 0.25).tolist() == [[False, True], [True, False]]
    assert keep_above(scores, 0.99, 0.5).tolist() == [[False, True], [True, False]]
    assert keep_above(scores, 0.0, 0.25).all()


@pytest.mark.parametrize("pruning", [TOP_K, SOFT], ids=["top-k", "soft"])
@pytest.mark.parametrize("at", [3, 8])
def test_resumption_is_exact(
    resumes_exactly: Callable[..., None], pruning: dict[str, Any], at: int
) -> None:
    resumes_exactly(pruning, 12, at)


def test_scores_have_their_own_learning_rate(drive: Callable[..., Any]) -> None:
    run = drive(TOP_K)
    (group,) = run.pruner.parameter_groups(1.0)
    assert group["lr"] == 1e-2 and group["weight_decay"] == 0.0 and len(group["params"]) == 12
    in_model = {id(p) for p in run.training.model.parameters()}
    assert all(id(p) in in_model for p in group["params"])


def test_refusals(drive: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="say uniform"):
        drive({**TOP_K, "scope": "global"})
    with pytest.raises(ValueError, match=r"pruning\.threshold: expected"):
        drive({**SOFT, "threshold": 1.0})
    linear = nn.Linear(2, 2)
    attach_scores({"l": linear}, {})
    with pytest.raises(ValueError, match="parametrizations already"):
        attach_scores({"l": linear}, {})
    assert isinstance(linear.weight, Tensor)
