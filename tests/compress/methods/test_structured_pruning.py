"""Heads and neurons: importance against autograd, ranking by hand, masks, biases, resumption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.compress.training.pruners.structured import choose_units, gate_gradients

HEADS = {"method": "structured", "ratios": [0.25, 0.5], "batches": 3, "batch_size": 4}


def test_gate_gradients_equal_autograd_through_a_factor() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    x, pull = torch.randn(7, 12, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    gates = torch.ones(3, dtype=torch.float64, requires_grad=True)
    y = (x * gates.repeat_interleave(4)) @ weight.t()
    (y.tanh() * pull).sum().backward()
    found = gate_gradients(weight.detach(), weight.grad, 4)
    torch.testing.assert_close(found, gates.grad)


def test_importance_in_a_model_equals_factors_on_heads_and_neurons(
    drive: Callable[..., Any],
) -> None:
    run = drive(HEADS)
    heads, neurons = run.pruner._importance(seed=5)
    model, expected_heads, expected_neurons = run.training.model, [], []
    factors = []
    for layer in model.bert.encoder.layer:
        head, neuron = torch.ones(2, requires_grad=True), torch.ones(48, requires_grad=True)
        factors.append((head, neuron))
        layer.attention.output.dense.register_forward_pre_hook(
            lambda _, args, head=head: (args[0] * head.repeat_interleave(16),)
        )
        layer.output.dense.register_forward_pre_hook(
            lambda _, args, neuron=neuron: (args[0] * neuron,)
        )
    generator = torch.Generator().manual_seed(5)
    expected_heads, expected_neurons = torch.zeros(2, 2), torch.zeros(2, 48)
    for _ in range(3):
        loss = run.training.loss(torch.randint(0, 16, (4,), generator=generator))
        flat = [factor for pair in factors for factor in pair]
        gradients = torch.autograd.grad(loss, flat)
        expected_heads += torch.stack([g.abs() for g in gradients[::2]])
        expected_neurons += torch.stack([g.abs() for g in gradients[1::2]])
    torch.testing.assert_close(heads.float(), expected_heads, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(neurons.float(), expected_neurons, rtol=1e-3, atol=1e-7)


def test_choice_by_hand() -> None:
    # Layer norms are 5 and 10: shares .6 .8 0 and 1 0 0.
    importance = torch.tensor([[3.0, 4.0, 0.0], [10.0, 0.0, 0.0]])
    alive = torch.ones(2, 3, dtype=torch.bool)
    chosen = choose_units(importance, 3, alive)
    assert chosen.tolist() == [[True, True, False], [True, False, False]]
    # A layer without any importance keeps its first, however few stay.
    dead = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    assert choose_units(dead, 1, alive).tolist() == [[False, True, False], [True, False, False]]
    # What is gone stays away even where its importance is the highest.
    gone = torch.tensor([[True, False, True], [True, True, True]])
    assert choose_units(importance, 4, gone).tolist() == [
        [True, False, True],
        [True, True, False],
    ]


def zero_units(weights: dict[str, Tensor], layer: int, heads: Tensor, neurons: Tensor) -> None:
    """Asserts that exactly these heads and neurons are gone."""
    place = f"bert.encoder.layer.{layer}"
    inside = heads.repeat_interleave(16)
    for part in ("query", "key", "value"):
        rows = (weights[f"{place}.attention.self.{part}"] != 0).any(1)
        assert torch.equal(rows, inside)
    assert torch.equal((weights[f"{place}.attention.output.dense"] != 0).any(0), inside)
    assert torch.equal((weights[f"{place}.intermediate.dense"] != 0).any(1), neurons)
    assert torch.equal((weights[f"{place}.output.dense"] != 0).any(0), neurons)


def test_masks_hold_at_every_step(drive: Callable[..., Any]) -> None:
    run, shares = drive(HEADS), []
    last = (run.pruner.heads.clone(), run.pruner.neurons.clone())

    def check(step: int) -> None:
        pruner = run.pruner
        for layer in range(2):
            zero_units(run.used_weights(), layer, pruner.heads[layer], pruner.neurons[layer])
        assert not (pruner.heads & ~last[0]).any() and not (pruner.neurons & ~last[1]).any()
        last[0].copy_(pruner.heads)
        last[1].copy_(pruner.neurons)
        shares.append((pruner.metrics()["heads_gone"], pruner.metrics()["neurons_gone"]))

    run.run(12, check)
    assert shares == [(0.25, 0.25)] * 6 + [(0.5, 0.5)] * 6
    assert run.pruner.heads.any(1).all()
    assert run.training.asked == [3, 3]


def test_finish_zeroes_biases_and_changes_no_output(drive: Callable[..., Any]) -> None:
    run = drive(HEADS)
    run.run(12)
    with torch.no_grad():
        before = run.training.model.eval()(input_ids=run.training.tokens).logits
    weights = run.finish()
    with torch.no_grad():
        after = run.training.model(input_ids=run.training.tokens).logits
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    for layer, (heads, neurons) in enumerate(
        zip(run.pruner.heads, run.pruner.neurons, strict=True)
    ):
        zero_units(weights, layer, heads, neurons)
        module = run.training.model.bert.encoder.layer[layer]
        assert (module.attention.self.value.bias[~heads.repeat_interleave(16)] == 0).all()
        assert (module.intermediate.dense.bias[~neurons] == 0).all()


def test_without_batches_importance_is_one_pass(drive: Callable[..., Any]) -> None:
    run = drive({**HEADS, "batches": None})
    run.run(1)
    assert run.training.asked == [4]  # 16 examples in batches of 4


@pytest.mark.parametrize("at", [3, 8])
def test_resumption_is_exact(resumes_exactly: Callable[..., None], at: int) -> None:
    resumes_exactly(HEADS, 12, at)


def test_refusals(drive: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="rising numbers"):
        drive({**HEADS, "ratios": [0.5, 0.5]})
    with pytest.raises(ValueError, match="all six matrices"):
        drive({**HEADS, "exclude": "query"})
    with pytest.raises(ValueError, match="too few"):
        drive(HEADS, 1)
