"""A recipe that was corrected goes on with the stages that it leaves as they were."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import Trainer

from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.stage_run import StageRunner

RECIPE = "prune-once-for-all"
SHORT = ("*.steps=2", "*.batch_size=16")


class Gone(Exception):
    """Stands for a machine that goes away."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages that were trained, as they begin."""
    seen: list[str] = []
    original = Trainer.train

    def counted(self: Any, *arguments: Any, **more: Any) -> Any:
        seen.append(self.training.stage.name)
        return original(self, *arguments, **more)

    monkeypatch.setattr(Trainer, "train", counted)
    return seen


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch, checkpoints: Any, labelled: Any, tmp_path: Path) -> None:
    """Leaves a training whose first four stages are done."""
    stage = StageRunner.stage

    def last_fails(self: StageRunner, one: Any, *arguments: Any) -> Any:
        if one is self.recipe.stages[-1]:
            raise Gone
        return stage(self, one, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "stage", last_fails)
        with pytest.raises(Gone):
            train(checkpoints["bert"], RECIPE, labelled, tmp_path / "out", changes=SHORT)


def weights(folder: Path) -> dict[str, bytes]:
    return {
        name: tensor.numpy().tobytes()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }


@pytest.mark.parametrize(
    ("change", "again", "trained"),
    [
        ("quantize.learning_rate=1e-4", None, ["quantize"]),
        ("transfer.learning_rate=1e-3", "transfer", ["transfer", "quantize"]),
        ("transfer.layout=null", None, ["quantize"]),
        ("prune.weight_decay=0.1", "prune", ["prune", "teacher", "transfer", "quantize"]),
    ],
)
def test_stages_before_the_first_change_are_kept(
    change, again, trained, cut, steps, checkpoints, labelled, tmp_path
) -> None:
    arguments = (checkpoints["bert"], RECIPE, labelled)
    changes = (*SHORT, change)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(*arguments, tmp_path / "out", changes=changes, resume=True)
    messages = [str(one.message) for one in told if "recipe has changed" in str(one.message)]
    assert bool(messages) == (again is not None)
    assert again is None or f"begins again with stage {again!r}" in messages[0]
    assert steps == trained
    # What was kept and what is new make the model that the corrected recipe makes at once.
    train(*arguments, tmp_path / "whole", changes=changes)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_wrong_correction_costs_nothing(cut, steps, checkpoints, labelled, tmp_path) -> None:
    arguments = (checkpoints["bert"], RECIPE, labelled, tmp_path / "out")
    wrong = (*SHORT, "prune.weight_decay=0.1", "quantize.freeze=[nosuch]")
    with pytest.raises(ValueError, match="stage 'quantize', freeze"):
        train(*arguments, changes=wrong, resume=True)
    train(*arguments, changes=SHORT, resume=True)
    assert steps == ["quantize"]


STAGE = {"task": "classification", "steps": 1, "batch_size": 16}


def cut_before_the_last(monkeypatch, stages: list[Any], *arguments: Any) -> None:
    stage = StageRunner.stage

    def last_fails(self: StageRunner, one: Any, *more: Any) -> Any:
        if one is self.recipe.stages[-1]:
            raise Gone
        return stage(self, one, *more)

    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "stage", last_fails)
        with pytest.raises(Gone):
            train(arguments[0], {"name": "own", "stages": stages}, *arguments[1:])


@pytest.mark.parametrize(
    ("key", "per"),
    [
        ("pruning", {"query": "1:4", ".": "2:4"}),
        ("quantization", {"query": "int4", ".": "int8"}),
    ],
)
def test_the_order_of_per_is_part_of_the_recipe(
    key, per, monkeypatch, checkpoints, labelled, tmp_path
) -> None:
    def stages(per: dict[str, str]) -> list[Any]:
        section = {"per": per} if key == "quantization" else {"per": per, "method": "magnitude"}
        return [{"name": "first", **STAGE, key: section}, {"name": "last", **STAGE}]

    arguments = (checkpoints["bert"], labelled, tmp_path / "out")
    cut_before_the_last(monkeypatch, stages(per), *arguments)
    other = {"name": "own", "stages": stages(dict(reversed(per.items())))}
    with pytest.warns(UserWarning, match="begins again with stage 'first'"):
        train(arguments[0], other, *arguments[1:], resume=True)


def test_a_recipe_that_ends_earlier_ends_with_its_own_last_stage(
    monkeypatch, steps, checkpoints, labelled, tmp_path
) -> None:
    data = replace(labelled, dev=labelled.test)
    stages = [{"name": name, **STAGE} for name in "abc"]
    arguments = (checkpoints["bert"], data, tmp_path / "out")
    cut_before_the_last(monkeypatch, stages, *arguments)
    shorter = {"name": "own", "stages": stages[:2]}
    with pytest.warns(UserWarning, match="begins again with stage 'b'"):
        report = train(arguments[0], shorter, *arguments[1:], resume=True)
    assert steps == ["a", "b", "b"]
    said = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert [stage["name"] for stage in said["arguments"]["stages"]] == ["a", "b"]
    assert report.stages[-1].development
