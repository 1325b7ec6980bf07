"""Recipes that write their result in their paper's own files too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import sparse_runtime as sr
from sparse_runtime.compress import paper_layouts
from sparse_runtime.compress.training import paper_files, run
from sparse_runtime.compress.training.reading import load_recipe, parse, recipe_names
from sparse_runtime.compress.training.report import PaperFiles, StageReport, TrainReport
from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.workspace import Workspace
from sparse_runtime.store import load

SHORT = ["*.steps=4", "*.batch_size=15"]
# What a run of 4 steps needs besides, and the layout's name where `inspect` says it.
CASES: dict[str, tuple[list[str], str | None]] = {
    "prune-once-for-all": ([], "Model-Compression-Research QAT"),
    "sparsebert": ([], "SparseBERT or CoFi training model"),
    "group-lasso": ([], None),
    "movement": (["prune.pruning.structure=unstructured@0.75"], "movement pruning"),
    "soft-movement": (["prune.steps=12", "prune.pruning.score_learning_rate=0.5"], "movement pruning"),
    "cap": (["prune.pruning.structure=unstructured@0.75"], "movement pruning"),
    "cap-structured": (
        ["prune.pruning.ratios=[0.25,0.5]", "prune.lr_cycles=2"],
        "CAP structured masks",
    ),
    "nxmiformer": (["compress.quantization=null"], "NxMiFormer"),
}


def short(recipe: str) -> list[str]:
    return [*SHORT, *CASES[recipe][0]]


def packed(source: Path, out: Path, finalise: dict[str, Any] | None = None) -> dict[str, Any]:
    """Name of a packed layer -> its dequantized weight, its integers' type and its structure."""
    sr.convert(source, out, finalise=finalise, crop="none", progress=False)
    return {
        name: (linear.packed.dequantize(), str(linear.packed.spec.values))
        for name, linear in load(out).linears.items()
    }


def same_weights(plain: dict[str, Any], paper: dict[str, Any]) -> None:
    assert plain.keys() == paper.keys()
    for name, (weight, values) in plain.items():
        assert values == paper[name][1], name
        assert torch.equal(weight, paper[name][0]), name


def test_every_layout_is_of_the_exporters() -> None:
    assert set(get_args(paper_layouts.Layout)) == set(paper_layouts._WRITERS)
    stating = {name for name in recipe_names() if load_recipe(name).stages[-1].layout}
    assert stating == set(CASES)
    transfer = load_recipe("prune-once-for-all").stages[-2]
    assert (transfer.name, transfer.layout) == ("transfer", "prune-ofa")


@pytest.mark.parametrize("recipe", CASES)
def test_the_papers_files_pack_to_the_very_weights(
    recipe: str, checkpoints: Any, labelled: Any, tmp_path: Path
) -> None:
    out, paper = tmp_path / "out", tmp_path / "paper"
    report = train(
        checkpoints["bert"], recipe, labelled, out, paper_out=paper, changes=short(recipe)
    )
    assert report.paper is not None and report.paper.directory == paper
    assert report.paper.layout == load_recipe(recipe).stages[-1].layout
    said = report.paper.finalise
    known = [found.layout for found in sr.inspect(paper, finalise=said).recognised]
    assert known == [name for name in (CASES[recipe][1],) if name is not None]
    same_weights(packed(out, tmp_path / "a"), packed(paper, tmp_path / "b", said))
    # Its tokenizer came along, and nothing of the training is left.
    assert (paper / "tokenizer.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "paper", "a", "b"}
