"""The knapsack against brute force; targets; sensitivities and allocations of small models."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress.oneshot.allocation import (
    CostTable,
    Target,
    allocate,
    flop_costs,
    size_costs,
)
from sparse_runtime.compress.oneshot.knapsack import choose_options
from sparse_runtime.compress.oneshot.layer_format import LayerFormat
from sparse_runtime.compress.oneshot.sensitivity import (
    Sensitivity,
    SensitivityTable,
    sensitivity,
    units_of,
)
from sparse_runtime.compress.oneshot.sensitivity_files import short_name

DENSE, HALF, FOUR = (LayerFormat.parse(text) for text in ("dense int8", "2:4 int8", "2:4 int4"))
MakeModel = Callable[[str], nn.Module]


def brute_force(errors: np.ndarray, costs: np.ndarray, budget: float) -> float:
    return min(
        sum(errors[i, o] for i, o in enumerate(choice))
        for choice in product(range(errors.shape[1]), repeat=errors.shape[0])
        if sum(costs[i, o] for i, o in enumerate(choice)) <= budget
    )


@pytest.mark.parametrize("seed", range(8))
def test_whole_costs_are_solved_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors, costs = rng.random((6, 4)), rng.integers(1, 30, (6, 4)).astype(float)
    budget = float(rng.integers(int(costs.min(1).sum()), 120))
    chosen = choose_options(errors, costs, budget)
    assert sum(costs[i, o] for i, o in enumerate(chosen)) <= budget
    found = sum(errors[i, o] for i, o in enumerate(chosen))
    assert found == pytest.approx(brute_force(errors, costs, budget))


@pytest.mark.parametrize("seed", range(4))
def test_other_costs_within_a_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors, costs = rng.random((6, 4)), rng.random((6, 4)) * 1e-3
    budget = float(costs.mean() * 6)
    chosen = choose_options(errors, costs, budget)
    assert sum(costs[i, o] for i, o in enumerate(chosen)) <= budget
    found = sum(errors[i, o] for i, o in enumerate(chosen))
    # No worse than the best of a budget that is smaller by what six roundings may take.
    assert found <= brute_force(errors, costs, budget * (1 - 6 / 20_000)) + 1e-12


def test_what_rounding_leaves_is_spent() -> None:
    # Three steps of the budget; each item's better option costs 1.2 of them.
    errors, costs = [[1.0, 0.0]] * 2, [[0.1, 1.2]] * 2
    assert choose_options(errors, costs, 3.0, resolution=3) == [1, 1]


def test_an_exact_fit_fits() -> None:
    assert choose_options([[1.0, 0.0]] * 3, [[0.1, 0.2]] * 3, 0.3) == [0, 0, 0]
    assert choose_options([[1.0, 0.0]] * 3, [[0.1, 0.2]] * 3, 0.6) == [1, 1, 1]
    with pytest.raises(ValueError, match=r"cheapest options cost 0.3"):
        choose_options([[1.0, 0.0]] * 3, [[0.1, 0.2]] * 3, 0.29)


@pytest.mark.parametrize(
    ("errors", "costs"), [([[1.0]], [[1.0, 2.0]]), ([[float("nan")]], [[1.0]]), ([[0.0]], [[-1.0]])]
)
def test_options_are_checked(errors: list[list[float]], costs: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="options"):
        choose_options(errors, costs, 5)


@pytest.mark.parametrize(
    ("text", "kind", "amount", "relative"),
    [
        ("latency=0.6x", "latency", 0.6, True),
        ("latency=3ms", "latency", 3e-3, False),
        ("size=6.5MB", "size", 6.5e6, False),
        ("flops = 0.5x", "flops", 0.5, True),
    ],
)
def test_targets(text: str, kind: str, amount: float, relative: bool) -> None:
    target = Target.parse(text)
    assert (target.kind, target.relative) == (kind, relative)
    assert target.amount == pytest.approx(amount)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize("text", ["latency=3MB", "size=0x", "speed=2x", "size=6", "flops=1..x"])
def test_other_targets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected 'latency=0.6x'"):
        Target.parse(text)


@pytest.mark.parametrize("text", ["dense int8", "2:4 int4", "block:1x4@0.8 int8", "2:4 bf16"])
def test_formats_are_read_and_written(text: str) -> None:
    assert str(LayerFormat.parse(text)) == text


@pytest.mark.parametrize("text", ["dense", "int8", "3:2 int8", "2:4 int7"])
def test_other_formats_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        LayerFormat.parse(text)


def table(errors: dict[str, tuple[float, float, float]]) -> SensitivityTable:
    return SensitivityTable(
        tuple(
            Sensitivity(unit, choice, error)
            for unit, row in errors.items()
            for choice, error in zip((DENSE, HALF, FOUR), row, strict=True)
        )
    )


def test_the_sensitive_layer_stays_dense() -> None:
    errors = table({"a": (0.0, 5.0, 9.0), "b": (0.0, 1.0, 9.0), "c": (0.0, 1.0, 9.0)})
    prices = {unit: {DENSE: 4.0, HALF: 2.0, FOUR: 1.0} for unit in "abc"}
    costs = CostTable("size", 10.0, prices, DENSE)
    found = allocate(errors, costs, Target("size", 18.0, False))
    assert found.formats == {"a": DENSE, "b": HALF, "c": HALF}
    assert (found.cost, found.budget, found.error) == (18.0, 18.0, 2.0)
    # The share is one of the whole, the fixed part included: 0.5 * (10 + 12) pays for no layer.
    with pytest.raises(ValueError, match="cheapest formats"):
        allocate(errors, costs, Target("size", 0.5, True))
    with pytest.raises(ValueError, match="are of size"):
        allocate(errors, costs, Target.parse("flops=0.5x"))


def batches() -> list[dict[str, Tensor]]:
    ids = torch.randint(3, 60, (16, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return [{"input_ids": ids, "attention_mask": mask}]


def test_a_sweep_leaves_the_model_and_ranks_formats(make_model: MakeModel) -> None:
    model = make_model("bert")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = sensitivity(model, batches(), [DENSE, HALF, FOUR], progress=False)
    assert len(found.units) == 12 and len(found.rows) == 36
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for unit in found.units:
        assert 0 <= found.error(unit, DENSE) < found.error(unit, HALF)
    # One layer by itself, by hand.
    unit = found.units[4]
    linear = model.get_submodule(unit)
    assert short_name(unit) == "0 ffn_in"
    with torch.no_grad():
        dense = model(**batches()[0])[0]
        linear.weight.zero_()
        cleared = model(**batches()[0])[0]
    assert float((cleared - dense).square().sum() / dense.square().sum()) > found.error(unit, HALF)


@pytest.mark.parametrize("stop", ["metric", "keep"])
def test_a_sweep_that_is_stopped_leaves_the_model(make_model: MakeModel, stop: str) -> None:
    model = make_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def stopping(*given: object) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, batches(), [HALF], progress=False, **{stop: stopping})  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_fused_units_are_decided_on_together(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("distilbert")
    units = units_of(model, fused=True)
    assert len(units) == 8
    found = sensitivity(model, batches(), [DENSE, HALF], units=units, progress=False)
    assert found.units == list(units)
    assert short_name(found.units[4]) == "1 query + key + value"
    found.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    costs = flop_costs(model, units, [DENSE, HALF], DENSE)
    chosen = allocate(found, costs, Target.parse("flops=0.75x"))
    assert chosen.cost <= 0.75 * costs.total(dict.fromkeys(units, DENSE))
    assert set(chosen.by_layer()) == {name for names in units.values() for name in names}


def test_sizes_are_those_of_packed_weights(make_model: MakeModel) -> None:
    model = make_model("bert")
    found = sensitivity(model, batches(), [DENSE, FOUR], progress=False)
    costs = size_costs(model, found.units, found.formats, DENSE)
    ffn = next(unit for unit in found.units if unit.endswith("0.intermediate.dense"))
    # 48 rows of 32: a byte each and a float32 scale a row; half the weights in 4 bits, with index.
    assert costs.units[ffn][DENSE] == 48 * 32 + 48 * 4
    assert costs.units[ffn][FOUR] == 48 * 16 // 2 + 48 * 32 // 4 * 4 // 8 + 48 * 4
