"""Fisher information of masks, the search, rearrangement and tuning: closed forms and wholes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress.oneshot.fisher import RandomProjection, mask_gradients
from sparse_runtime.compress.oneshot.hessian import InputStatistics
from sparse_runtime.compress.oneshot.structured import (
    choose_units,
    prune_structured,
    remove_units,
    teacher_units,
    unit_costs,
)
from sparse_runtime.compress.oneshot.unit_search import rearrange, search_masks
from sparse_runtime.compress.oneshot.unit_tuning import tune_columns, tune_scales
from sparse_runtime.compress.targets import layers

MakeModel = Callable[[str], nn.Module]


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        ids = torch.randint(3, 60, (4, 7), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def test_gradients_are_those_of_one_example_at_a_time(make_model: MakeModel) -> None:
    model = make_model("bert")
    found = mask_gradients(
        model, batches(1), lambda outputs, batch: outputs[0].square().sum(1), progress=False
    )
    # d loss / d mask of a neuron, by central differences of the column that reads it.
    layer = layers(model)[1]
    one = {name: tensor[2:3] for name, tensor in batches(1)[0].items()}
    column = layer.linears["ffn_out"].weight[:, 7]
    losses = []
    with torch.no_grad():
        before = column.clone()
        for factor in (1.05, 0.95):
            column.copy_(before * factor)
            losses.append(float(model(**one)[0].double().square().sum()))
        column.copy_(before)
    expected = (losses[0] - losses[1]) / 0.1
    assert float(found.neurons[1][2, 7]) == pytest.approx(expected, rel=2e-2, abs=1e-7)
    assert found.heads[0].shape == (4, 2)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_random_signs_give_the_fisher_of_all_outputs() -> None:
    torch.manual_seed(0)
    jacobian = torch.randn(5, 3)
    x = torch.ones(4000, 3, requires_grad=True)
    value = RandomProjection()((x @ jacobian.T,), {})
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(
        gradient.T @ gradient / 4000, jacobian.T @ jacobian, rtol=0.1, atol=0.5
    )


def test_a_model_in_training_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        mask_gradients(make_model("bert").train(), batches())
    with pytest.raises(ValueError, match="one number for each of 4"):
        mask_gradients(make_model("bert"), batches(), lambda outputs, batch: outputs[0].sum())


@pytest.mark.parametrize("budget", [5.0, 9.0, 12.5, 17.0])
def test_search_equals_brute_force(budget: float) -> None:
    torch.manual_seed(2)
    heads, neurons = [torch.rand(2), torch.rand(2)], [torch.rand(3), torch.rand(3) / 2]
    found = search_masks(heads, neurons, head_cost=1.5, neuron_cost=1.0, budget=budget)
    head_mask, neuron_mask = torch.cat(found[0]), torch.cat(found[1])
    assert 1.5 * head_mask.sum() + neuron_mask.sum() <= budget
    assert all(bool(mask.any()) for part in found for mask in part)
    importance = torch.cat([*heads, *neurons])
    lost = importance[~torch.cat([head_mask, neuron_mask])].sum()
    best = torch.inf
    for bits in product((False, True), repeat=10):
        mask = torch.tensor(bits)
        whole = all(bool(part.any()) for part in mask.split([2, 2, 3, 3]))
        if whole and 1.5 * mask[:4].sum() + mask[4:].sum() <= budget:
            best = min(best, float(importance[~mask].sum()))
    # Each layer's best unit is kept for certain, which here costs nothing.
    assert float(lost) == pytest.approx(best)


def test_search_refuses_a_budget_that_empties_layers() -> None:
    with pytest.raises(ValueError, match=r"cost 5"):
        search_masks(
            [torch.ones(2)] * 2, [torch.ones(3)] * 2, head_cost=1.5, neuron_cost=1, budget=4
        )


def dropped_loss(mask: Tensor, gradients: Tensor) -> float:
    """Mean over the examples of the square of what the dropped units' gradients sum up to."""
    return float(gradients[:, ~mask].double().sum(1).square().mean())


def test_rearrangement_keeps_one_of_two_that_stand_for_each_other() -> None:
    # Units 0 and 1 add up: dropping both costs four times one of them; 2 is a little dearer alone.
    torch.manual_seed(0)
    base = torch.randn(200)
    gradients = torch.stack([base, base, 1.1 * torch.randn(200), 9 * torch.randn(200)], 1)
    start = torch.tensor([False, False, True, True])
    found = rearrange(start, gradients)
    assert found.sum() == 2
    assert not found[2] and found[3]
    assert dropped_loss(found, gradients) < dropped_loss(start, gradients)


def test_rearrangement_ends_where_no_swap_helps() -> None:
    torch.manual_seed(1)
    gradients = torch.randn(50, 8)
    found = rearrange(torch.arange(8) < 4, gradients)
    loss = dropped_loss(found, gradients)
    for kept in found.nonzero().flatten():
        for dropped in (~found).nonzero().flatten():
            swapped = found.clone()
            swapped[kept], swapped[dropped] = False, True
            assert dropped_loss(swapped, gradients) >= loss * (1 - 1e-9)


def gathered(inputs: Tensor, missing: Tensor | None = None) -> InputStatistics:
    statistics = InputStatistics(inputs.shape[1])
    statistics.add(inputs, None, None if missing is None else {"layer": missing})
    return statistics


def test_columns_take_over_what_went() -> None:
    # Column 3 is a mix of the others and a constant: without it nothing need be lost.
    torch.manual_seed(0)
    inputs = torch.randn(100, 4)
    inputs[:, 3] = inputs[:, 0] - 2 * inputs[:, 1] + 0.5
    weight = torch.randn(6, 4)
    kept = torch.tensor([True, True, True, False])
    tuned, shift = tune_columns("layer", weight, kept, gathered(inputs), damping=0)
    outputs = inputs.double() @ tuned.T + shift
    torch.testing.assert_close(outputs, (inputs @ weight.T).double(), rtol=1e-4, atol=1e-4)
    assert not tuned[:, 3].any()


def test_columns_equal_least_squares_towards_other_outputs() -> None:
    torch.manual_seed(0)
    inputs, missing = torch.randn(60, 5), torch.randn(60, 3)
    weight = torch.randn(3, 5)
    kept = torch.tensor([True, False, True, True, False])
    tuned, shift = tune_columns("layer", weight, kept, gathered(inputs, missing), damping=0)
    wanted = inputs @ weight.T + missing
    design = torch.cat([inputs[:, kept], torch.ones(60, 1)], 1).double()
    expected = torch.linalg.lstsq(design, wanted.double()).solution
    torch.testing.assert_close(tuned[:, kept].T, expected[:-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shift, expected[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3])  # neurons; heads of three features
def test_scales_equal_least_squares(size: int) -> None:
    torch.manual_seed(0)
    units = 4
    inputs, missing = torch.randn(50, units * size), torch.randn(50, 6)
    weight = torch.randn(6, units * size)
    kept = torch.tensor([True, False, True, True])
    found = tune_scales("layer", weight, kept, gathered(inputs, missing), damping=0)
    parts = [
        inputs[:, u * size : (u + 1) * size] @ weight[:, u * size : (u + 1) * size].T
        for u in range(units)
        if kept[u]
    ]
    design = torch.stack([part.flatten() for part in parts], 1).double()
    wanted = (inputs @ weight.T + missing).flatten().double()
    expected = torch.linalg.lstsq(design, wanted.unsqueeze(1)).solution.squeeze(1)
    torch.testing.assert_close(found[kept], expected, rtol=1e-4, atol=1e-5)
    assert found[1] == 0


def test_a_strong_ridge_changes_nothing() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(3, 4), torch.randn(30, 4)
    kept = torch.tensor([True, True, False, True])
    tuned, _ = tune_columns("layer", weight, kept, gathered(inputs), damping=1e9)
    torch.testing.assert_close(tuned[:, kept], weight[:, kept].double(), rtol=1e-5, atol=1e-5)
    factors = tune_scales("layer", weight, kept, gathered(inputs), damping=1e9)
    torch.testing.assert_close(factors[kept], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet"])
def test_tuning_brings_outputs_closer_to_the_teacher_s(make_model: MakeModel, family: str) -> None:
    dense = make_model(family)
    for parameter in dense.parameters():  # the initial weights of 0.02 leave layers without effect
        nn.init.normal_(parameter, std=0.15)
    gradients = mask_gradients(dense, batches(), progress=False)
    costs = unit_costs(dense, 6.5)
    aims = teacher_units(dense, gradients, costs, 0.6, choose_units(dense, gradients, costs, 0.6))
    teacher = copy.deepcopy(dense)
    remove_units(teacher, [], aims, aims, tuning="none")
    errors = {}
    for tuning in ("none", "scales", "columns"):
        model = copy.deepcopy(dense)
        report = prune_structured(model, batches(), flops=0.6, tuning=tuning, progress=False)  # type: ignore[arg-type]
        assert 0.5 < report.flops <= 0.6
        for layer, kept in zip(layers(model), report.layers, strict=True):
            gone = ~kept.neurons
            assert not layer.linears["ffn_in"].weight[gone].any()
            assert not layer.linears["ffn_in"].bias[gone].any()
            assert not layer.linears["ffn_out"].weight[:, gone].any()
            heads = ~kept.heads.repeat_interleave(16)
            assert not layer.linears["attention_output"].weight[:, heads].any()
            assert all(not layer.linears[n].weight[heads].any() for n in ("query", "key", "value"))
        with torch.no_grad():
            errors[tuning] = sum(
                float((model(**batch)[0] - teacher(**batch)[0]).square().sum())
                for batch in batches()
            )
    assert errors["columns"] < errors["none"]
    assert errors["columns"] < errors["scales"]


def test_convert_crops_what_went(make_model: MakeModel, tmp_path: Path) -> None:
    import sparse_runtime as sr

    model = make_model("bert")
    report = prune_structured(model, batches(), flops=0.5, progress=False)
    model.save_pretrained(tmp_path / "pruned")
    converted = sr.convert(tmp_path / "pruned", tmp_path / "packed", progress=False)
    for layer, kept in zip(converted.cropped, report.layers, strict=True):
        assert layer.neurons == int((~kept.neurons).sum())
        assert list(layer.heads) == (~kept.heads).nonzero().flatten().tolist()


def test_a_share_below_one_unit_a_layer_names_the_option(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"\(--keep-flops\) 0.001: one head .* 2 layers take 0\."):
        prune_structured(make_model("bert"), batches(), flops=0.001)


@pytest.mark.parametrize("flops", [0.0, 1.5])
def test_shares_are_checked(make_model: MakeModel, flops: float) -> None:
    with pytest.raises(ValueError, match="share"):
        prune_structured(make_model("bert"), batches(), flops=flops)
    with pytest.raises(ValueError, match="tuning 'all'"):
        prune_structured(make_model("bert"), batches(), flops=0.5, tuning="all")  # type: ignore[arg-type]
