"""Searches that are refused, before anything is trained or written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.compress import FormatSearch
from sparse_runtime.compress.training.data import Data
from sparse_runtime.tools.layer_latency import Shape, latency_costs

FEW = FormatSearch(0.125, top=2, evaluations=3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"limit": 0.0}, "expected a share of the size in FP32, above 0 and at most 1"),
        ({"limit": 1.5}, r"search \(--search\) 1.5: expected a share"),
        ({"limit": float("nan")}, "expected a share of the size in FP32, above 0"),
        ({"limit": 0.05}, r"no candidate is that small; the least is 0\.09375"),
        ({"limit": "small"}, "such as 0.125, or a target: target 'small': expected 'latency=0"),
        ({"limit": 0.1, "top": 0}, r"top \(--top\) 0: expected 1 or more"),
        ({"limit": 0.1, "evaluations": 0}, r"evaluations \(--evaluations\) 0: expected 1"),
        ({"limit": "size=0.5x", "evaluations": 3}, "belongs to a share of the size"),
        ({"limit": "latency=0.5x"}, "needs measured costs; give measure"),
        ({"limit": "latency=0.5x", "measure": latency_costs}, r"shape \(--shape\) None: expected"),
        ({"limit": "size=0.5x", "shape": Shape(1, 8)}, "and none under another"),
        ({"limit": 0.5, "formats": ("unstructured@0.9 int8",)}, "expected dense or N:M under"),
    ],
)
def test_what_cannot_be_searched_for(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FormatSearch(**asked)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("gradual-magnitude", {}, "recipe 'gradual-magnitude' has no stage that quantizes"),
        ("int8-qat", {}, "has no stage that prunes by a pattern"),
        (
            "nxmiformer",
            {"changes": ["compress.pruning.per={query: null}"]},
            "stage 'compress' states pruning.per, and a search chooses for every layer itself",
        ),
        ("nxmiformer", {"wanted": FormatSearch("size=0.01x")}, "the cheapest formats of all"),
        (
            "nxmiformer",
            {"changes": ["compress.pruning={method: group-lasso, structure: 'block:1x4@0.5'}"]},
            "group lasso works on groups of weights",
        ),
        (
            "nxmiformer",
            {
                "changes": [
                    "compress.quantization.activations=static",
                    "compress.quantization.outputs=[query]",
                ]
            },
            "stage 'compress' states quantization.outputs, and a search chooses",
        ),
        (
            "nxmiformer-sequential",
            {"given": ("prune",)},
            r"a model is given for stage 'prune' \(--stage\), .* stages before 'prune' alone",
        ),
        (
            "nxmiformer",
            {"changes": ["compress.start=model"]},
            r"stage 'compress' starts from 'model', .* \(classifier\.bias would be random",
        ),
        (
            "nxmiformer",
            {"changes": ["teacher.task=masked_lm"]},
            r"starts from 'teacher', .* \(its head would be random",
        ),
        (
            "distilled",
            {"wanted": replace(FEW, formats=("2:4 int4", "1:4 int8"))},
            r"\(--search\): with 2:4 int4: query, .* pruning.scope: .* got 1:4, 2:4; say uniform",
        ),
        ("nxmiformer", {"dev": None}, "needs a development part to choose by"),
        ("nxmiformer", {"paper_out": "paper"}, "a search has many candidates"),
    ],
)
def test_what_cannot_be_trained_is_refused_before(
    recipe: str,
    options: dict[str, Any],
    message: str,
    search: Callable[..., Any],
    chosen_by: Data,
    tuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparse_runtime.compress.training.stage_run.StageRunner._train", None)
    data = replace(chosen_by, dev=options.pop("dev", chosen_by.dev))
    wanted = options.pop("wanted", FEW)
    given = dict.fromkeys(options.pop("given", ()), tuned)
    with pytest.raises(ValueError, match=message):
        search(wanted, recipe, given=given, data=data, **options)
    assert not list(tmp_path.iterdir())


def test_a_random_head_is_not_searched_on(search: Callable[..., Any], tmp_path: Path) -> None:
    stage = {
        **{"name": "compress", "task": "classification", "steps": 1},
        "pruning": {"method": "admm", "structure": "2:4"},
        "quantization": {"weights": "int8"},
    }
    with pytest.raises(ValueError, match=r"classifier\.bias would be random"):
        search(FEW, {"name": "own", "stages": [stage]}, given={}, changes=())
    assert not list(tmp_path.iterdir())
