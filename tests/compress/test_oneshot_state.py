"""State directories: when they begin, which run they hold, and what is no directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import BertTokenizer

import sparse_runtime as sr
from sparse_runtime.compress.oneshot.plan_state import PlanState
from sparse_runtime.compress.oneshot.prune import prune
from sparse_runtime.compress.oneshot.sensitivity_run import measure_sensitivity
from sparse_runtime.compress.oneshot.state import LayerStates
from sparse_runtime.tools.targets import prune_to_target

MakeModel = Callable[[str], nn.Module]
WORDS = [f"word{i}" for i in range(50)]
TEXTS = [" ".join(WORDS[(7 * i + j * j) % 50] for j in range(3 + i % 9)) for i in range(12)]


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return {
        "calibration": TEXTS,
        "tokenizer": BertTokenizer(vocab={word: i for i, word in enumerate(words)}),
        "state_dir": tmp_path / "state",
        "progress": False,
    }


def test_a_target_that_is_refused_leaves_no_state(
    make_model: MakeModel, given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cheapest formats"):
        prune_to_target(make_model("bert"), None, target="size=0.01x", **given)
    assert not (tmp_path / "state").exists()
    report = prune_to_target(make_model("bert"), None, target="size=0.8x", **given)
    assert report.allocation.cost <= report.allocation.budget
    assert (tmp_path / "state" / "run.json").is_file()


def test_texts_that_convert_refuses_leave_no_state(
    make_model: MakeModel, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = make_model("bert")
    model.save_pretrained(tmp_path / "source")
    given["tokenizer"].save_pretrained(tmp_path / "source")
    # Whenever a state begins: texts are looked at before.
    monkeypatch.setattr("sparse_runtime.tools.one_shot.LayerStates", None)
    arguments = {"prune": "2:4", "state_dir": tmp_path / "state", "progress": False}
    with pytest.raises(ValueError, match="calibration: expected a list of at least one text"):
        sr.convert(tmp_path / "source", tmp_path / "out", calibration=[], **arguments)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("inside", ["", "deeper/state"])
def test_a_file_is_no_state_directory(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match=r"state_dir \(--state\) .*file is a file; give ano"):
        LayerStates(tmp_path / "file" / inside, {})


def test_another_run_is_told_by_what_differs(tmp_path: Path) -> None:
    run = {"plan": {"seed": 0, "conditions": {"shape": [8, 128]}}, "weights": "a", "to": None}
    LayerStates(tmp_path / "state", run).begin()
    LayerStates(tmp_path / "state", run)
    other = {**run, "plan": {"seed": 0, "conditions": {"shape": [1, 8]}}, "weights": "b"}
    with pytest.raises(ValueError, match="holds another run") as refused:
        LayerStates(tmp_path / "state", {**other, "sensitivity": {"fused": True}})
    assert "plan.conditions.shape (held [8, 128], asked [1, 8])" in str(refused.value)
    assert "sensitivity (held nothing, asked {'fused': True}); weights; give" in str(refused.value)


def test_a_sweep_and_a_pruning_do_not_share_a_state(
    make_model: MakeModel, given: dict[str, Any]
) -> None:
    measure_sensitivity(make_model("bert"), formats=["dense int8"], **given)
    with pytest.raises(
        ValueError, match=r"holds another run.*sensitivity \(held \{.*asked nothing"
    ):
        prune(make_model("bert"), None, to="2:4", **given)


def test_looking_begins_no_state(tmp_path: Path) -> None:
    states = LayerStates(tmp_path / "state", {"method": "obs"})
    plan = PlanState.of(states)
    assert plan.rows() == [] and plan.allocation() is None
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_sweep_leaves_every_module_in_its_mode(
    make_model: MakeModel, given: dict[str, Any], stopped: bool
) -> None:
    model = make_model("bert").train()
    next(model.children()).eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    if stopped:
        with pytest.raises(ValueError, match="calibration"):
            measure_sensitivity(model, **{**given, "calibration": []})
    else:
        measure_sensitivity(model, formats=["dense int8"], **given)
    assert [module.training for module in model.modules()] == before
