"""Configuration search: the counts of candidates, one-shot scores, budgets, and clean models."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress.targets import COMPONENTS
from sparse_runtime.compress.training.configuration_search import (
    candidates,
    component_sizes,
    compression_ratio,
    recipe_sections,
    search,
    within_ratio,
)
from sparse_runtime.compress.training.layer_search import search_layers
from sparse_runtime.compress.training.one_shot_scores import OPTIONS, OneShot, Option
from sparse_runtime.formats import observe
from sparse_runtime.spec import Structure, ValueSpec

# One layer of BERT-base, then two tiny layers.
BERT_BASE = dict(zip(COMPONENTS, [768 * 768] * 4 + [768 * 3072] * 2, strict=True))
NAMES = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


def tiny(layers: int = 2) -> dict[str, nn.Linear]:
    torch.manual_seed(0)
    return {
        f"bert.encoder.layer.{i}.{name}": nn.Linear(
            16 if name == "output.dense" else 8, 16 if name == "intermediate.dense" else 8
        )
        for i in range(layers)
        for name in NAMES
    }


def distance(linears: dict[str, nn.Linear], dense: dict[str, Tensor]) -> float:
    """A score: 0 for dense weights, lower the further they are from them."""
    return -sum(
        float((linear.weight.detach() - dense[name]).square().sum())
        for name, linear in linears.items()
    )


def copies(linears: dict[str, nn.Linear]) -> dict[str, Tensor]:
    return {name: linear.weight.detach().clone() for name, linear in linears.items()}


def test_bits_of_the_papers_options() -> None:
    with_index = [option.bits() / 32 for option in OPTIONS]
    assert with_index == [0.28125, 0.25, 0.125, 0.15625, 0.09375]
    assert [option.bits(index=False) / 32 for option in OPTIONS] == [
        0.25,
        0.25,
        0.125,
        0.125,
        0.0625,
    ]
    assert Option(Structure("nm", n=1, m=8), ValueSpec("int8")).bits() == (8 + 3) / 8


@pytest.mark.parametrize(
    ("limit", "count"), [(1.0, 15_625), (0.20, 10_856), (0.15, 3_603), (0.125, 905), (0.10, 15)]
)
def test_candidates_of_bert_base(limit: float, count: int) -> None:
    assert len(within_ratio(BERT_BASE, limit)) == count


def test_the_index_decides_who_is_small_enough() -> None:
    smallest = dict.fromkeys(COMPONENTS, OPTIONS[-1])
    assert compression_ratio(smallest, BERT_BASE) == 0.09375
    assert compression_ratio(smallest, BERT_BASE, index=False) == 0.0625
    assert len(within_ratio(BERT_BASE, 0.10, index=False)) > 15
    assert within_ratio(BERT_BASE, 0.09) == []
    assert len(list(candidates(["query", "key"], OPTIONS[:3]))) == 9


def test_component_sizes_are_over_all_layers() -> None:
    assert component_sizes(tiny()) == {
        **dict.fromkeys(COMPONENTS[:4], 128),
        "ffn_in": 256,
        "ffn_out": 256,
    }


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_projected_weights_are_what_the_option_says(option: Option) -> None:
    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    projected = option.project(weight)
    nonzeros = (projected.view(-1, 4) != 0).sum(1)
    assert nonzeros.max() <= (2 if option.structure else 4)
    assert option.structure is None or observe(projected, option.values).structure.kind == "nm"
    if option.values.dtype == "int4":
        steps = projected.view(2, -1) / projected.view(2, -1).abs().amax(1, keepdim=True) * 7
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    if option.values.dtype == "fp16":
        assert torch.equal(projected, projected.half().float())


def test_search_gives_the_best_and_leaves_the_model_alone() -> None:
    linears = tiny()
    dense, calls = copies(linears), [0]

    def evaluate() -> float:
        calls[0] += 1
        return distance(linears, dense)

    found = search(linears, evaluate, 0.10, top=3)
    left = within_ratio(component_sizes(linears), 0.10)
    assert calls[0] == len(left)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(one.cost <= 0.10 for one in found)
    model = OneShot(linears, lambda: distance(linears, dense))
    every = [
        model.score({name: one[part] for name, part in zip(linears, COMPONENTS * 2, strict=True)})
        for one in left
    ]
    assert found[0].score == pytest.approx(max(every))
    assert all(torch.equal(linear.weight, dense[name]) for name, linear in linears.items())


def test_fewer_evaluations_find_the_best_where_losses_add_up() -> None:
    linears = tiny()
    dense, calls = copies(linears), [0]

    def evaluate() -> float:
        calls[0] += 1
        return distance(linears, dense)

    whole = search(linears, evaluate, 0.125, top=1)
    calls[0] = 0
    few = search(linears, evaluate, 0.125, top=1, evaluations=5)
    assert calls[0] == 1 + 6 * 5 + 5  # dense, each component alone, the five that are left
    assert few[0].configuration == whole[0].configuration


def test_a_failing_evaluation_gives_the_weights_back() -> None:
    linears = tiny(1)
    dense = copies(linears)

    def fail() -> float:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        search(linears, fail, 0.10)
    assert all(torch.equal(linear.weight, dense[name]) for name, linear in linears.items())


def test_layers_search_finds_the_least_loss_under_the_limit() -> None:
    # Four matrices, three options: 81 choices, tried one by one for the truth.
    linears = dict(list(tiny(1).items())[:4])
    dense, options = copies(linears), OPTIONS[1:4]
    seconds = dict(zip(options, (3.0, 2.0, 1.0), strict=True))

    def cost(name: str, option: Option) -> float:
        return seconds[option] * (2.0 if "query" in name else 1.0)

    def evaluate() -> float:
        return distance(linears, dense)

    found = search_layers(linears, evaluate, cost, 9.0, options=options, top=3)
    model = OneShot(linears, evaluate)
    choices = [
        dict(zip(linears, chosen, strict=True)) for chosen in itertools.product(options, repeat=4)
    ]
    truth = max(
        model.score(choice)
        for choice in choices
        if sum(cost(name, option) for name, option in choice.items()) <= 9.0
    )
    assert found[0].score == pytest.approx(truth)
    assert all(one.cost <= 9.0 for one in found)
    assert len({tuple(map(str, one.configuration.values())) for one in found}) == len(found)
    # The least that can be: every matrix at its cheapest.
    assert search_layers(linears, evaluate, cost, 5.0, options=options)[0].cost == 5.0
    assert all(torch.equal(linear.weight, dense[name]) for name, linear in linears.items())


def test_limits_that_nothing_meets_are_refused() -> None:
    linears = tiny(1)
    with pytest.raises(ValueError, match=r"the least is 0\.09375"):
        search(linears, lambda: 0.0, 0.05)
    with pytest.raises(ValueError, match="cheapest options cost 6 together"):
        search_layers(linears, lambda: 0.0, lambda name, option: 1.0, 5.0)


def test_recipe_sections_say_the_configuration() -> None:
    pruning, quantization = recipe_sections({"query": OPTIONS[0], "key": OPTIONS[2]})
    assert pruning == {"query": "2:4", "key": None}
    assert quantization == {"query": None, "key": "int4"}
    by_name, _ = recipe_sections({"bert.encoder.layer.1.output.dense": OPTIONS[3]})
    assert by_name == {r"^bert\.encoder\.layer\.1\.output\.dense$": "2:4"}
