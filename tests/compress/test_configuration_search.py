"""Configuration search: the counts of candidates, one-shot scores, budgets, and clean models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress.oneshot.layer_format import LayerFormat
from sparse_runtime.compress.targets import COMPONENTS
from sparse_runtime.compress.training.configuration_search import (
    candidates,
    component_sizes,
    compression_ratio,
    search,
    within_ratio,
)
from sparse_runtime.compress.training.format_search import recipe_sections
from sparse_runtime.compress.training.one_shot_scores import (
    OPTIONS,
    Found,
    OneShot,
    Scores,
    bits,
    projected,
)
from sparse_runtime.formats import observe

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
    with_index = [bits(option) / 32 for option in OPTIONS]
    assert with_index == [0.28125, 0.25, 0.125, 0.15625, 0.09375]
    assert [bits(option, index=False) / 32 for option in OPTIONS] == [
        0.25,
        0.25,
        0.125,
        0.125,
        0.0625,
    ]
    assert bits(LayerFormat.parse("1:8 int8")) == (8 + 3) / 8
    with pytest.raises(ValueError, match="expected dense or N:M under a ratio"):
        bits(LayerFormat.parse("unstructured@0.9 int8"))


@pytest.mark.parametrize(
    ("limit", "count"), [(1.0, 15_625), (0.20, 10_856), (0.15, 3_603), (0.125, 905), (0.10, 15)]
)
def test_candidates_of_bert_base(limit: float, count: int) -> None:
    assert len(within_ratio(BERT_BASE, limit)) == count


def test_the_index_decides_who_is_small_enough() -> None:
    smallest = dict.fromkeys(COMPONENTS, OPTIONS[-1])
    assert compression_ratio(smallest, BERT_BASE) == 0.09375
    assert compression_ratio(smallest, BERT_BASE, index=False) == 0.0625
    assert within_ratio(BERT_BASE, 0.09) == []
    assert len(list(candidates(["query", "key"], OPTIONS[:3]))) == 9


def test_component_sizes_are_over_all_layers() -> None:
    assert component_sizes(tiny()) == {
        **dict.fromkeys(COMPONENTS[:4], 128),
        "ffn_in": 256,
        "ffn_out": 256,
    }


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_projected_weights_are_what_the_option_says(option: LayerFormat) -> None:
    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    found = projected(option, weight)
    nonzeros = (found.view(-1, 4) != 0).sum(1)
    assert nonzeros.max() <= (2 if option.pattern else 4)
    assert option.pattern is None or observe(found, option.values).structure.kind == "nm"
    if option.values.dtype == "int4":
        steps = found.view(2, -1) / found.view(2, -1).abs().amax(1, keepdim=True) * 7
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    if option.values.dtype == "fp16":
        assert torch.equal(found, found.half().float())


def test_search_gives_the_best_and_leaves_the_model_alone() -> None:
    linears = tiny()
    dense, calls = copies(linears), [0]

    def evaluate() -> float:
        calls[0] += 1
        return distance(linears, dense)

    whole = search(linears, evaluate, 0.10)
    found = whole.scored
    left = within_ratio(component_sizes(linears), 0.10)
    assert calls[0] == len(left) == len(found) == whole.fitting
    assert whole.possible == 5**6
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

    whole = search(linears, evaluate, 0.125)
    calls[0] = 0
    few = search(linears, evaluate, 0.125, evaluations=5)
    assert calls[0] == 1 + 6 * 5 + 5  # dense, each component alone, the five that are left
    assert few.scored[0].configuration == whole.scored[0].configuration
    assert (few.fitting, len(few.scored)) == (whole.fitting, 5)


def test_a_failing_evaluation_gives_the_weights_back() -> None:
    linears = tiny(1)
    dense = copies(linears)

    def fail() -> float:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        search(linears, fail, 0.10)
    assert all(torch.equal(linear.weight, dense[name]) for name, linear in linears.items())


def test_limits_that_nothing_meets_are_refused() -> None:
    linears = tiny(1)
    with pytest.raises(ValueError, match=r"the least is 0\.09375"):
        search(linears, lambda: 0.0, 0.05)


def test_scores_that_are_known_are_not_taken_again(tmp_path: Path) -> None:
    linears = tiny(1)
    dense, calls = copies(linears), [0]

    def evaluate() -> float:
        calls[0] += 1
        if calls[0] == 9:
            raise KeyboardInterrupt
        return distance(linears, dense)

    file = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        search(linears, evaluate, 0.12, scores=Scores(file))
    file.write_text(file.read_text() + '["half a li')
    found = search(linears, evaluate, 0.12, scores=Scores(file))
    assert calls[0] == 9 + (found.fitting or 0) - 8
    assert found == search(linears, lambda: distance(linears, dense), 0.12)
    again = Found.from_dict(json.loads(json.dumps(found.to_dict())))
    assert [one.score for one in again.scored] == [one.score for one in found.scored]
    assert again.to_dict() == found.to_dict()


def test_recipe_sections_say_the_configuration() -> None:
    pruning, quantization = recipe_sections({"query": OPTIONS[0], "key": OPTIONS[2]})
    assert pruning == {"query": "2:4", "key": None}
    assert quantization == {"query": None, "key": "int4"}
    by_name, _ = recipe_sections({"bert.encoder.layer.1.output.dense": OPTIONS[3]})
    assert by_name == {r"^bert\.encoder\.layer\.1\.output\.dense$": "2:4"}
