"""What tuning after heads and neurons have gone aims at, and where tuning of scales stops."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress.oneshot import structured
from sparse_runtime.compress.oneshot.fisher import MaskGradients, mask_gradients
from sparse_runtime.compress.oneshot.plans import SearchPlan
from sparse_runtime.compress.oneshot.state import LayerStates
from sparse_runtime.compress.oneshot.structured import (
    PrunedUnits,
    UnitCosts,
    choose_units,
    prune_structured,
    remove_units,
    teacher_units,
    unit_costs,
)
from sparse_runtime.compress.oneshot.unit_search import search_masks
from sparse_runtime.compress.oneshot.unit_tuning import LARGEST_SCALE
from sparse_runtime.compress.targets import EncoderLayer, layers

MakeModel = Callable[[str], nn.Module]
SHARE = 0.5


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 60, (8, 7), generator=generator) for _ in range(4)]
    mask = torch.ones_like(ids[0])
    mask[0, 5:] = 0
    return [{"input_ids": one, "attention_mask": mask} for one in ids]


def made(make_model: MakeModel, family: str = "bert") -> nn.Module:
    model = make_model(family)
    for parameter in model.parameters():  # the initial weights of 0.02 leave layers without effect
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return model


def searched(model: nn.Module) -> tuple[MaskGradients, UnitCosts]:
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches()])
    return (
        mask_gradients(model, batches(), progress=False),
        unit_costs(model, float(lengths.double().mean())),
    )


def without_columns(model: nn.Module, heads: list[Tensor], neurons: list[Tensor]) -> nn.Module:
    """A copy in which nothing reads what a mask leaves out."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer, some, others in zip(layers(model), heads, neurons, strict=True):
            out = layer.linears["attention_output"]
            out.weight *= some.repeat_interleave(out.in_features // len(some))
            layer.linears["ffn_out"].weight *= others
    return model


def tokens(model: nn.Module, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of a linear layer, padding left out, float64."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = module.register_forward_hook(lambda m, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        for batch in batches():
            model(**batch)
    hook.remove()
    real = [batch["attention_mask"].bool() for batch in batches()]
    inputs, outputs = zip(*seen, strict=True)
    return (
        torch.cat([x[mask] for x, mask in zip(inputs, real, strict=True)]).double(),
        torch.cat([x[mask] for x, mask in zip(outputs, real, strict=True)]).double(),
    )


def last_sum(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Of the last feed-forward: what its second half reads, gives, and the residual."""
    linears = layers(model)[-1].linears
    read, given = tokens(model, linears["ffn_out"])
    return read, given, tokens(model, linears["ffn_in"])[0]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("tuning", ["columns", "scales"])
def test_tuning_aims_at_the_model_pruned_to_the_square_root(
    make_model: MakeModel, family: str, tuning: structured.Tuning
) -> None:
    dense = made(make_model, family)
    gradients, costs = searched(dense)
    units = choose_units(dense, gradients, costs, SHARE)
    heads = [one.double().square().mean(0) for one in gradients.heads]
    neurons = [one.double().square().mean(0) for one in gradients.neurons]
    found = search_masks(
        heads,
        neurons,
        head_cost=costs.head,
        neuron_cost=costs.neuron,
        budget=math.sqrt(SHARE) * (4 * costs.head + 96 * costs.neuron),
    )
    assert not all(bool(mask.all()) for mask in (*found[0], *found[1]))
    teacher = without_columns(
        dense,
        [mask | kept.heads for mask, kept in zip(found[0], units, strict=True)],
        [mask | kept.neurons for mask, kept in zip(found[1], units, strict=True)],
    )
    student = copy.deepcopy(dense)
    report = prune_structured(
        student, batches(), flops=SHARE, tuning=tuning, damping=1e-4, progress=False
    )
    kept = report.layers[-1].neurons
    assert torch.equal(kept, units[-1].neurons)
    # Nothing is tuned after the last feed-forward: what the student reads there is what was fitted.
    read, given, residual = last_sum(student)
    got = given + residual

    def best(other: nn.Module) -> Tensor:
        """Least squares towards another model's sum, from what the student reads."""
        _, wanted, also = last_sum(other)
        target = wanted + also - residual
        linear = layers(dense)[-1].linears["ffn_out"]
        weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
        if tuning == "columns":
            design = torch.cat([read[:, kept], torch.ones(len(read), 1)], 1).double()
            return residual + design @ torch.linalg.lstsq(design, target).solution
        parts = read[:, kept].unsqueeze(2) * weight.T[kept]  # [tokens, units, out]
        design = parts.transpose(1, 2).reshape(-1, int(kept.sum()))
        factors = torch.linalg.lstsq(design, (target - bias).reshape(-1, 1)).solution
        return residual + bias + (design @ factors).view_as(target)

    error = float((got - best(teacher)).norm() / got.norm())
    assert error < 1e-3
    assert float((got - best(dense)).norm() / got.norm()) > 20 * error


@pytest.mark.parametrize("flops", [0.35, 0.5, 0.8, 1.0])
def test_the_teacher_holds_what_stays_and_more(make_model: MakeModel, flops: float) -> None:
    model = made(make_model)
    gradients, costs = searched(model)
    units = choose_units(model, gradients, costs, flops)
    teacher = teacher_units(model, gradients, costs, flops, units)
    cost = 0.0
    for kept, wider in zip(units, teacher, strict=True):
        assert wider.name == kept.name
        assert bool((wider.heads | ~kept.heads).all()) and bool(
            (wider.neurons | ~kept.neurons).all()
        )
        cost += float(wider.heads.sum() * costs.head + wider.neurons.sum() * costs.neuron)
    whole = 4 * costs.head + 96 * costs.neuron
    # At most one head fewer than the square root, of which none is half.
    assert cost >= math.sqrt(flops) * whole - costs.head
    assert flops == 1 or any(not bool(one.neurons.all() and one.heads.all()) for one in teacher)


def test_units_that_rearrangement_brought_in_are_the_teacher_s_too(make_model: MakeModel) -> None:
    model = made(make_model)
    gradients, costs = searched(model)
    weakest = gradients.neurons[0].square().mean(0).argmin()
    units = choose_units(model, gradients, costs, SHARE)
    assert not units[0].neurons[weakest]
    units[0].neurons[weakest] = True
    assert teacher_units(model, gradients, costs, SHARE, units)[0].neurons[weakest]


def test_all_units_change_nothing(make_model: MakeModel) -> None:
    dense = made(make_model)
    model = copy.deepcopy(dense)
    report = prune_structured(model, batches(), flops=1.0, progress=False)
    assert report.flops == 1
    for (name, now), then in zip(model.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(now, then, rtol=1e-4, atol=1e-5, msg=name)


def halves(model: nn.Module) -> list[PrunedUnits]:
    half = torch.arange(48) < 24
    return [PrunedUnits(one.path, torch.tensor([True, False]), half) for one in layers(model)]


def scaled(before: EncoderLayer, after: EncoderLayer, part: str) -> bool:
    """Whether columns of kept units are other than they were."""
    old, new = (layer.linears[part].weight for layer in (before, after))  # type: ignore[index]
    kept = slice(0, old.shape[1] // 2)
    assert not new[:, old.shape[1] // 2 :].any()
    return not torch.equal(old[:, kept], new[:, kept])


@pytest.mark.parametrize("factor", [LARGEST_SCALE * 1.01, -LARGEST_SCALE * 1.01, math.nan])
@pytest.mark.parametrize("bad", range(4))
def test_scales_stop_for_good_beyond_the_largest(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, factor: float, bad: int
) -> None:
    dense = made(make_model)
    model, tried = copy.deepcopy(dense), []

    def tune(name: str, weight: Tensor, kept: Tensor, *rest: object, **named: object) -> Tensor:
        tried.append(name)
        factors = kept * torch.full((len(kept),), LARGEST_SCALE, dtype=torch.float64)
        if len(tried) == bad:
            factors[0] = factor
        return factors

    monkeypatch.setattr(structured, "tune_scales", tune)
    units = halves(dense)
    remove_units(model, batches(), units, units, tuning="scales", progress=False)
    # The first layer's heads are never tried; factors of exactly the limit are taken.
    assert len(tried) == (bad or 3)
    found = [
        scaled(old, new, part)
        for old, new in zip(layers(dense), layers(model), strict=True)
        for part in ("attention_output", "ffn_out")
    ]
    assert found == [False, *(i >= 1 and (not bad or i < bad) for i in range(1, 4))]


def test_columns_tune_the_first_layer_s_heads_too(make_model: MakeModel) -> None:
    dense = made(make_model)
    model = copy.deepcopy(dense)
    whole = [PrunedUnits(u.name, u.heads | True, u.neurons | True) for u in halves(dense)]
    remove_units(model, batches(), halves(dense), whole, tuning="columns", progress=False)
    assert scaled(layers(dense)[0], layers(model)[0], "attention_output")


def test_a_state_of_another_teacher_is_refused(tmp_path: Path) -> None:
    asked = SearchPlan(keep_flops=0.5).to_dict()
    before = {key: value for key, value in asked.items() if key != "tuned_towards"}
    assert before != asked
    LayerStates(tmp_path, {"plan": before}).begin()
    with pytest.raises(ValueError, match=r"plan\.tuned_towards \(held nothing, asked 'units at"):
        LayerStates(tmp_path, {"plan": asked})
    # Where nothing is tuned, states of before are as good.
    for plan in (SearchPlan(), SearchPlan(keep_flops=0.5, tuning="none")):
        assert "tuned_towards" not in plan.to_dict()
