"""A search that was stopped goes on: its rows, and the formats that it chose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

from sparse_runtime.compress.oneshot import plans, sensitivity
from sparse_runtime.compress.oneshot.allocation import CostTable
from sparse_runtime.compress.oneshot.layer_format import LayerFormat
from sparse_runtime.compress.oneshot.prune import prune
from sparse_runtime.tools import targets
from sparse_runtime.tools.layer_latency import Shape
from sparse_runtime.tools.targets import prune_to_target

WORDS = [f"word{i}" for i in range(20)]
TEXTS = [" ".join(WORDS[i % 13 : i % 13 + 3 + i % 5]) for i in range(12)]
DENSE, HALF = LayerFormat.parse("dense int8"), LayerFormat.parse("2:4 int8")


def model() -> nn.Module:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=30,
            num_hidden_layers=2,
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=2,
        )
    ).eval()


def arguments(tmp_path: Path) -> dict[str, Any]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return {
        "target": "latency=0.9x",
        "formats": [str(DENSE), str(HALF)],
        "calibration": TEXTS,
        "tokenizer": BertTokenizer(vocab={word: i for i, word in enumerate(words)}),
        "state_dir": tmp_path / "state",
        "progress": False,
    }


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Times without a clock; the later one makes other units the dear ones."""
    runs: list[bool] = []

    def costs(model: nn.Module, units: Any, *rest: Any, **options: Any) -> CostTable:
        runs.append(True)
        dear = {u: 1.0 + (i % 2 if len(runs) == 1 else (i + 1) % 2) for i, u in enumerate(units)}
        return CostTable(
            "latency", 0.0, {u: {DENSE: d, HALF: d / 2} for u, d in dear.items()}, DENSE
        )

    monkeypatch.setattr(targets, "latency_costs", costs)
    monkeypatch.setattr(targets, "pack_model", lambda *a, **o: None)
    monkeypatch.setattr(targets.SparseModel, "from_packed", lambda *a, **o: None)
    monkeypatch.setattr(
        targets, "measure_latency", lambda *a, **o: {"chosen": 1.0, "reference": 2.0}
    )
    return runs


def test_another_measurement_does_not_choose_otherwise(
    tmp_path: Path, timed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prune_to_target(model(), None, **arguments(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(sensitivity, "_Comparison", None)  # nothing is measured again
        again = prune_to_target(model(), None, **arguments(tmp_path))
    assert timed == [True]
    assert again.allocation == first.allocation
    assert again.sensitivity == first.sensitivity and len(first.sensitivity.rows) == 16
    assert json.loads(json.dumps(again.to_dict()))["target"]["sensitivity"]
    fresh = prune_to_target(model(), None, **{**arguments(tmp_path), "state_dir": None})
    assert len(timed) == 2 and fresh.allocation != first.allocation


def test_a_sweep_that_was_stopped_goes_on(
    tmp_path: Path, timed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prune_to_target(model(), None, **{**arguments(tmp_path), "state_dir": None})
    compare, calls = sensitivity._Comparison.__call__, []

    def stopping(self: Any) -> float:
        calls.append(True)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return compare(self)

    timed.clear()
    monkeypatch.setattr(sensitivity._Comparison, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        prune_to_target(model(), None, **arguments(tmp_path))
    rows = tmp_path / "state" / "sensitivity.jsonl"
    with rows.open("a") as file:
        file.write('["half a li')
    timed.clear()
    found = prune_to_target(model(), None, **arguments(tmp_path))
    assert len(calls) == 11 + 16 - 10
    assert found.sensitivity == whole.sensitivity
    assert len(rows.read_text().splitlines()) == 16


def test_a_foreign_state_is_refused_before_the_search(
    tmp_path: Path, timed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(tmp_path)
    plain = {name: given[name] for name in ("calibration", "tokenizer", "state_dir", "progress")}
    prune(model(), None, to="2:4", **plain)
    monkeypatch.setattr(plans, "sensitivity", None)
    with pytest.raises(
        ValueError, match=r"differs in plan \(held None, asked .*; to \(held '2:4', asked None\)"
    ):
        prune_to_target(model(), None, **given)
    assert timed == []


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"shape": Shape(1, 8)}, "plan.conditions.shape"),
        ({"rounds": 2}, "plan.conditions.rounds"),
        ({"target": "latency=0.9000001x"}, "plan.target"),
        ({"threads": 1}, "plan.conditions.threads"),
    ],
)
def test_a_choice_for_other_conditions_is_refused(
    tmp_path: Path,
    timed: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    other: dict[str, Any],
    differs: str,
) -> None:
    prune_to_target(model(), None, **arguments(tmp_path))
    given = {**arguments(tmp_path), **other}
    threads = torch.get_num_threads() + given.pop("threads", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with pytest.raises(ValueError, match="another run") as refused:
        prune_to_target(model(), None, **given)
    assert differs in str(refused.value) and timed == [True]
