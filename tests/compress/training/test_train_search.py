"""Formats searched for, the best trained by the recipe, the best of these kept."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import sparse_runtime as sr
from sparse_runtime.compress import FormatSearch
from sparse_runtime.compress.oneshot.allocation import CostTable, Target
from sparse_runtime.compress.oneshot.layer_format import BY_TOKEN, LayerFormat
from sparse_runtime.compress.targets import COMPONENTS, component
from sparse_runtime.compress.training import finalists
from sparse_runtime.compress.training.configuration_search import within_ratio
from sparse_runtime.compress.training.data import Data
from sparse_runtime.compress.training.format_search import with_formats
from sparse_runtime.compress.training.one_shot_scores import OneShot
from sparse_runtime.compress.training.reading import load_recipe
from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.stage_run import Diverged, StageRunner
from sparse_runtime.compress.training.trainer import PrunerCallback
from sparse_runtime.compress.training.workspace import FOUND
from sparse_runtime.spec import DYNAMIC_ACTIVATIONS
from sparse_runtime.tools.layer_latency import Shape, latency_costs

SHORT = ("*.steps=3", "*.batch_size=15")
FEW = FormatSearch(0.125, top=2, evaluations=3)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_by_the_development_part_is_kept(
    sign: int,
    search: Callable[..., Any],
    checkpoints: Any,
    chosen_by: Data,
    tuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rank = finalists.rank
    monkeypatch.setattr(finalists, "rank", lambda task, one: [sign * x for x in rank(task, one)])
    report = search(FEW)
    order = [(-one["accuracy"], one["loss"]) for one in report.search.trained]
    assert len(set(order)) == 2
    assert order[report.search.chosen] == (min(order) if sign == 1 else max(order))
    # What a reader of the result is told.
    out = tmp_path / "out"
    said = json.loads((out / "compression.json").read_text())
    assert said["recipe"] == "nxmiformer" and said["search"] == report.search.to_dict()
    counts = [said["search"][name] for name in ("possible", "fitting", "scored")]
    sizes = dict(zip(COMPONENTS, (1, 1, 1, 1, 2, 2), strict=True))
    assert counts == [5**6, len(within_ratio(sizes, 0.125)), 3]
    table = json.loads((out / "search.json").read_text())["candidates"]
    assert len(table) == 3 and all(row["cost"] <= 0.125 for row in table)
    assert [row["score"] for row in table] == sorted((r["score"] for r in table), reverse=True)
    assert not out.with_name("out.training").exists()
    # It is what the recipe alone makes of the formats that were found.
    chosen = report.search.found.scored[report.search.chosen].configuration
    recipe = with_formats(load_recipe("nxmiformer", SHORT), chosen)
    train(checkpoints["bert"], recipe, chosen_by, tmp_path / "alone", given={"teacher": tuned})
    assert same(out, tmp_path / "alone")
    integers = {part: one.values.dtype for part, one in chosen.items() if one.values.is_integer}
    for layer in sr.convert(out, tmp_path / "packed").layers:
        assert layer.values == integers.get(component(layer.name), layer.values)


def test_a_training_that_diverges_is_left_out(
    search: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_one = finalists._train

    def first_diverges(number: int, *arguments: Any) -> Any:
        if number == 0:
            raise Diverged("candidate 0 has diverged")
        return train_one(number, *arguments)

    monkeypatch.setattr(finalists, "_train", first_diverges)
    with pytest.warns(UserWarning, match="left out: .*candidate 0 has diverged"):
        report = search(FEW)
    first, second = report.search.to_dict()["trained"]
    assert first["development"] is None and second["development"] == report.stages[-1].development
    assert report.search.chosen == 1
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.search)
    assert "diverged" in console.export_text()


@pytest.mark.filterwarnings("ignore:left out")
def test_a_search_whose_trainings_all_diverge_says_so(search: Callable[..., Any]) -> None:
    told = [f"compress.{said}" for said in ("learning_rate=1e30", "warmup=0", "clip=0")]
    with pytest.raises(Diverged, match=r"stage 'compress': the training has diverged \(bert"):
        search(FEW, changes=(*SHORT, *told))


def test_a_search_goes_on_where_it_was_cut_off(
    search: Callable[..., Any],
    checkpoints: Any,
    chosen_by: Data,
    tuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored, trained = [0], [0]
    evaluate, step = OneShot._become, PrunerCallback.on_pre_optimizer_step

    def score(self: OneShot, choice: Any) -> None:
        scored[0] += bool(choice)
        if scored[0] == 20:
            raise KeyboardInterrupt
        evaluate(self, choice)

    def train_step(self: PrunerCallback, *args: Any, **kwargs: Any) -> None:
        trained[0] += 1
        if trained[0] == 5:
            raise KeyboardInterrupt
        step(self, *args, **kwargs)

    monkeypatch.setattr(OneShot, "_become", score)
    monkeypatch.setattr(PrunerCallback, "on_pre_optimizer_step", train_step)
    with pytest.raises(KeyboardInterrupt):
        search(FEW)
    assert (scored[0], trained[0]) == (20, 0)
    with pytest.raises(ValueError, match="begun with other search"):
        search(replace(FEW, top=3), resume=True)
    # Scores and candidates rest on every stage.
    with pytest.raises(ValueError, match="begun with other recipe"):
        search(FEW, resume=True, changes=[*SHORT, "compress.learning_rate=1e-3"])
    with pytest.raises(KeyboardInterrupt):
        search(FEW, resume=True)
    # 6 components in 5 formats and 3 candidates, the 20th tried twice.
    assert (scored[0], trained[0]) == (6 * 5 + 3 + 1, 5)
    report = search(FEW, resume=True)
    # The first candidate had its 3 steps, the second begins anew.
    assert (scored[0], trained[0]) == (34, 8)
    whole = train(
        *(checkpoints["bert"], "nxmiformer", chosen_by, tmp_path / "whole"),
        search=FEW,
        given={"teacher": tuned},
        changes=SHORT,
    )
    assert report.search == whole.search and same(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("limit", ["size=0.6x", "latency=1x"])
def test_a_format_for_each_layer_under_a_target(
    limit: str, search: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[CostTable] = []
    counted = finalists.mix_costs
    monkeypatch.setattr(
        finalists, "mix_costs", lambda *told: costs.append(counted(*told)) or costs[-1]
    )
    inputs = []

    def measure(*told, **more):
        inputs.append(more["inputs"])
        return latency_costs(*told, rounds=2, **more)

    formats = ("dense int8", "2:4 int8", "2:4 int4")
    shape = Shape(2, 8) if limit.startswith("latency") else None
    wanted = FormatSearch(limit, top=2, formats=formats, measure=measure, shape=shape)
    report = search(wanted, "nxmiformer-sequential")
    found = report.search.found.scored
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    (table,) = costs
    for one in found:
        chosen = {unit: one.configuration[unit.split(" + ")[0]] for unit in table.units}
        total = table.fixed + sum(table.units[unit][choice] for unit, choice in chosen.items())
        assert one.cost == pytest.approx(total)
        dense = sum(row[table.reference] for row in table.units.values())
        assert total <= Target.parse(limit).amount * (table.fixed + dense) * (1 + 1e-9)
    said = json.loads((tmp_path / "out" / "compression.json").read_text())["search"]
    assert said["shape"] == (shape and "2x8")
    assert len({tuple(one.configuration.items()) for one in found}) == len(found) >= 1
    assert len(report.search.trained) == min(2, len(found))
    chosen = found[report.search.chosen].configuration
    assert len(chosen) == 12
    # As the recipe quantizes them.
    assert set(inputs) == ({DYNAMIC_ACTIVATIONS["symmetric"]} if shape else set())
    if limit.startswith("latency"):
        # Queries, keys and values run as one product, and cost what it costs.
        parts = ("query", "key", "value")
        names = [[n for n in chosen if f"layer.{i}.attention.self" in n] for i in (0, 1)]
        assert all(len(group) == len(parts) for group in names)
        assert all(len({str(chosen[name]) for name in group}) == 1 for group in names)
    else:
        assert {str(one) for one in chosen.values()} > {"2:4 int4"}
    packed = {layer.name: layer for layer in sr.convert(tmp_path / "out", tmp_path / "p").layers}
    for name, choice in chosen.items():
        assert packed[name].values == choice.values.dtype
        assert choice.pattern is None or packed[name].structure == "2:4"


def test_layers_that_are_measured_are_kept(
    search: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = [0]
    solve = LayerFormat.solve

    def cut(self: LayerFormat, *args: Any, **options: Any) -> Any:
        solved[0] += 1
        if solved[0] == 10:
            raise KeyboardInterrupt
        return solve(self, *args, **options)

    monkeypatch.setattr(LayerFormat, "solve", cut)
    wanted = FormatSearch("size=0.8x", top=1, formats=("dense int8", "2:4 int8"))
    with pytest.raises(KeyboardInterrupt):
        search(wanted)
    search(wanted, resume=True)
    # 12 matrices in 2 formats, the 10th tried twice.
    assert solved[0] == 12 * 2 + 1


def test_the_best_are_checked_before_one_is_trained(
    search: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = StageRunner.check

    def late(self: StageRunner) -> None:
        if (tmp_path / "out.training" / FOUND).is_file():
            raise ValueError("not this one")
        check(self)

    monkeypatch.setattr(StageRunner, "check", late)
    monkeypatch.setattr(StageRunner, "_train", None)
    with pytest.raises(ValueError, match=r"search \(--search\): with .*: not this one"):
        search(FEW)


def test_the_shape_is_part_of_the_search() -> None:
    one, other = (
        FormatSearch("latency=1x", measure=latency_costs, shape=Shape(batch, 8)) for batch in (1, 2)
    )
    assert (one.to_dict()["shape"], other.to_dict()["shape"]) == ("1x8", "2x8")
    assert one.plan().measure.keywords == {"shape": Shape(1, 8), "inputs": BY_TOKEN}


def test_recipes_whose_own_words_do_not_fit_what_is_found(search: Callable[..., Any]) -> None:
    # All matrices ranked together at 90 %: of what is found, only 2:4 is pruned.
    found = FormatSearch(0.2, top=1, evaluations=2, formats=("2:4 int8", "dense int8"))
    report = search(found, "distilled")
    assert {str(one) for one in report.search.found.scored[0].configuration.values()} == {
        *found.formats
    }
    # A rate that goes back at pruning events, where none is left.
    recipe = load_recipe("prune-once-for-all", SHORT)
    dense = with_formats(recipe, dict.fromkeys(COMPONENTS, LayerFormat.parse("dense int8")))
    assert [stage.lr_schedule for stage in recipe.stages][1] == "rewinding"
    assert (dense.stages[1].pruning, dense.stages[1].lr_schedule) == (None, "linear")


def test_the_teacher_is_trained_before_the_search(
    search: Callable[..., Any], tmp_path: Path
) -> None:
    report = search(replace(FEW, top=1, rows=10), given={})
    assert [(stage.name, stage.steps) for stage in report.stages] == [
        ("teacher", 3),
        ("compress", 3),
    ]
    assert report.to_dict()["search"]["rows"] == 10


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same tensors."""
    first, second = (load_file(place / "model.safetensors") for place in (one, other))
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )
