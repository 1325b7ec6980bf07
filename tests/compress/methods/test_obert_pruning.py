"""oBERT in a training: gradual, monotone, better than magnitude on the loss model, resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparse_runtime.compress.masks import original_weight
from sparse_runtime.compress.patterns import Pattern
from sparse_runtime.compress.training.pruners.fisher import FisherInverse

OBERT = {
    "method": "obert",
    "structure": "unstructured@0.75",
    "fisher_block": 8,
    "gradients": 6,
    "batch_size": 4,
    "damp": 1e-4,
    "schedule": {"initial": 0.4, "begin": 0.25, "end": 0.75, "stop": 0.75, "updates": 2},
}


# 2:4 on its way drops what 2:4 drops; blocks of 4 in Fisher blocks of 8; blocks with cut edges.
@pytest.mark.parametrize(
    "structure", ["unstructured@0.75", "2:4", "block:1x4@0.75", "block:4x1@0.75", "block:2x4@0.7"]
)
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_masks_hold_and_only_grow(drive: Callable[..., Any], structure: str, scope: str) -> None:
    run = drive({**OBERT, "structure": structure, "scope": scope})
    last: dict[str, torch.Tensor] = {}
    sparsity = []

    def check(step: int) -> None:
        masks, used = run.masks(), run.used_weights()
        for name, mask in masks.items():
            assert (used[name][~mask] == 0).all()
            assert not (mask & ~last.get(name, mask)).any()
            last[name] = mask.clone()
        sparsity.append(run.pruner.metrics()["sparsity"])

    run.run(12, check)
    final = Pattern.parse(structure).final_sparsity
    assert sparsity[2] == 0 and sparsity[3] == pytest.approx(0.4, abs=0.01)
    assert sparsity[-1] == pytest.approx(final, abs=0.01)
    assert run.training.asked == [6] * 3  # at steps 3, 6 and 9: each computes the Fisher anew
    for name, weight in run.finish().items():
        if scope == "uniform":
            kept = Pattern.parse(structure).mask(weight.abs() + (weight != 0))
            assert ((weight != 0) <= kept).all(), name


def test_event_is_the_papers_step(drive: Callable[..., Any]) -> None:
    run = drive({**OBERT, "schedule": {**OBERT["schedule"], "initial": 0.5, "begin": 0.0}})
    name, linear = next(iter(run.training.linears.items()))
    before = original_weight(linear).detach().clone()
    gradients = []
    for _ in run.training.gradients(6, 4, run.training.seed):
        gradients.append(original_weight(linear).grad.flatten().clone())
    fisher = FisherInverse(before.numel(), block=8, damp=1e-4)
    fisher.add(torch.stack(gradients))
    run.pruner.begin_step(0, 12)
    keep = Pattern.parse("unstructured@0.5").mask(fisher.saliency(before.flatten()).view(32, 32))
    assert torch.equal(run.masks()[name], keep)
    expected = fisher.prune(before.flatten(), keep.flatten()).view(32, 32)
    torch.testing.assert_close(linear.weight.detach(), expected)
    assert not torch.equal(linear.weight.detach()[keep], before[keep])


def test_updates_behind_the_end_cost_nothing(drive: Callable[..., Any]) -> None:
    run = drive({**OBERT, "schedule": {**OBERT["schedule"], "stop": 1.0, "updates": 8}})
    run.run(12)
    assert len(run.training.asked) == 7  # steps 3 to 9; 10 and 11 would change no mask


def test_loss_rises_less_than_by_magnitude(drive: Callable[..., Any]) -> None:
    # 80 % of the weights of a trained model go in one event.
    schedule = {"initial": 0.8, "begin": 0.75, "end": 0.75, "stop": 0.75, "updates": 1}
    common = {"structure": "unstructured@0.8", "schedule": schedule}
    exact = {"fisher_block": 32, "gradients": 64, "batch_size": 1, "damp": 1e-6}

    def rise(pruning: dict[str, Any]) -> float:
        run, rows = drive({**pruning, **common}, 40, learning_rate=1e-3), torch.arange(16)
        run.run(30)
        before = run.training.loss(rows).item()
        run.pruner.begin_step(30, 40)
        return run.training.loss(rows).item() - before

    assert rise({"method": "obert", **exact}) < 0.6 * rise({"method": "magnitude"})


@pytest.mark.parametrize("at", [3, 8])
def test_resumption_is_exact(resumes_exactly: Callable[..., None], at: int) -> None:
    resumes_exactly(OBERT, 10, at)


def test_refusals(drive: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="no multiple of the 16 weights"):
        drive({**OBERT, "structure": "block:4x4@0.5"})
    with pytest.raises(ValueError, match="damp"):
        drive({**OBERT, "damp": 0.0})
