"""Recipes that write their result in their paper's own files too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import sparse_runtime as sr
from sparse_runtime.compress import paper_layouts
from sparse_runtime.compress.training import run
from sparse_runtime.compress.training.reading import load_recipe, parse, recipe_names
from sparse_runtime.compress.training.report import PaperFiles, StageReport, TrainReport
from sparse_runtime.compress.training.run import train
from sparse_runtime.spec import ValueSpec
from sparse_runtime.store import load

SHORT = ["*.steps=4", "*.batch_size=15"]
# What a run of 4 steps needs besides, and the layout's name where `inspect` says it.
CASES: dict[str, tuple[list[str], str | None]] = {
    "prune-once-for-all": ([], "Model-Compression-Research QAT"),
    "sparsebert": ([], "SparseBERT or CoFi training model"),
    "group-lasso": ([], None),
    "movement": ([], "movement pruning"),
    "soft-movement": (
        ["prune.steps=12", "prune.pruning.score_learning_rate=0.5"],
        "movement pruning",
    ),
    "cap": ([], "movement pruning"),
    "cap-structured": (
        ["prune.pruning.ratios=[0.25,0.5]", "prune.lr_cycles=2"],
        "CAP structured masks",
    ),
    "nxmiformer": (["compress.quantization=null"], "NxMiFormer"),
    "nxmiformer-sequential": (["quantize.quantization=null"], "NxMiFormer"),
}

LAST = {"nxmiformer": "compress", "nxmiformer-sequential": "quantize"}
MASKED_STE = "{method: masked-ste, structure: '2:4'"


def short(recipe: str) -> list[str]:
    return [*SHORT, *CASES[recipe][0]]


def _values(spec: ValueSpec) -> str:
    return f"{spec.dtype} {spec.scales}"


def packed(source: Path, out: Path, finalise: dict[str, Any] | None = None) -> dict[str, Any]:
    """Name of a packed layer -> its dequantized weight, and its integers' type and scales."""
    sr.convert(source, out, finalise=finalise, crop="none", progress=False)
    return {
        name: (linear.packed.dequantize(), _values(linear.packed.spec.values))
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
    assert report.stages[-1].sparsity > 0
    said = report.paper.finalise
    known = [found.layout for found in sr.inspect(paper, finalise=said).recognised]
    assert known == [name for name in (CASES[recipe][1],) if name is not None]
    same_weights(packed(out, tmp_path / "a"), packed(paper, tmp_path / "b", said))
    # Its tokenizer came along, and nothing of the training is left.
    assert (paper / "tokenizer.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "paper", "a", "b"}


def test_a_recipe_that_ends_with_transfer(checkpoints: Any, labelled: Any, tmp_path: Path) -> None:
    whole = load_recipe("prune-once-for-all", SHORT)
    recipe, paper = replace(whole, stages=whole.stages[:-1]), tmp_path / "paper"
    report = train(checkpoints["bert"], recipe, labelled, tmp_path / "out", paper_out=paper)
    assert report.paper is not None and report.paper.layout == "prune-ofa"
    # Beside the masks lies a plain file, which opens when nothing is said.
    assert report.paper.finalise == {"file": "raw_pytorch_model.bin"}
    plain = packed(tmp_path / "out", tmp_path / "a")
    same_weights(plain, packed(paper, tmp_path / "b", report.paper.finalise))
    same_weights(plain, packed(paper, tmp_path / "c"))


@pytest.mark.parametrize(
    ("recipe", "changes", "values"),
    [
        ("nxmiformer", [], "int8 chunk:32"),
        ("nxmiformer", ["compress.quantization.weights=int4"], "int4 chunk:32"),
        # Its mask is that of the beginning, no longer by magnitude in the end; or it moves.
        ("nxmiformer", [f"compress.pruning={MASKED_STE}}}"], "int8 chunk:32"),
        ("nxmiformer", [f"compress.pruning={MASKED_STE}, every: 2}}"], "int8 chunk:32"),
        ("nxmiformer-sequential", [], "int8 chunk:32"),
    ],
)
def test_quantized_nxmiformer_keeps_its_pattern(
    recipe: str,
    changes: list[str],
    values: str,
    checkpoints: Any,
    labelled: Any,
    tmp_path: Path,
) -> None:
    out, paper = tmp_path / "out", tmp_path / "paper"
    fast = [*SHORT, f"{LAST[recipe]}.learning_rate=0.01", *changes]
    report = train(checkpoints["bert"], recipe, labelled, out, paper_out=paper, changes=fast)
    assert report.paper is not None
    assert report.paper.finalise == {"nxm": str(paper / "nxm_config.json")}
    plain, found = (
        packed(place, tmp_path / f"{place.name}-packed", said)
        for place, said in ((out, None), (paper, report.paper.finalise))
    )
    for name, (weight, of_plain) in plain.items():
        other, of_paper = found[name]
        assert of_plain == of_paper == values
        assert (other.view(-1, 4) != 0).sum(1).max() <= 2
        # Its scale is up to 8/7 of ours: no weight is more than a step of each away.
        step = weight.abs().max() / (7 if "int4" in values else 127)
        assert (other - weight).abs().max() <= 8 / 7 * step


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("nxmiformer", ["compress.pruning={method: masked-ste, structure: '2:4'}"]),
        ("nxmiformer", ["compress.pruning.values=int8"]),
        ("soft-movement", ["prune.steps=12", "prune.pruning.threshold=0.3"]),
        ("movement", ["prune.pruning.structure='block:4x4@0.5'"]),
    ],
)
def test_variants_pack_to_the_very_weights(
    recipe: str, changes: list[str], checkpoints: Any, labelled: Any, tmp_path: Path
) -> None:
    out, paper = tmp_path / "out", tmp_path / "paper"
    fast = [*short(recipe), *changes]
    report = train(checkpoints["bert"], recipe, labelled, out, paper_out=paper, changes=fast)
    assert report.paper is not None
    same_weights(packed(out, tmp_path / "a"), packed(paper, tmp_path / "b", report.paper.finalise))


def test_a_sentence_encoder_keeps_its_pipeline(
    sentence_encoder: Path, scored_pairs: Any, tmp_path: Path
) -> None:
    stage = {
        **{"name": "prune", "task": "embedding", "steps": 2, "teacher": "model"},
        **{"distillation": {"embedding": 1}, "layout": "group-lasso"},
        "pruning": {"method": "magnitude", "structure": "block:1x4@0.5"},
    }
    recipe = {"name": "own", "stages": [stage]}
    train(sentence_encoder, recipe, scored_pairs, tmp_path / "out", paper_out=tmp_path / "paper")
    assert (tmp_path / "paper" / "modules.json").is_file()
    assert (tmp_path / "paper" / "1_Pooling" / "config.json").is_file()


def test_a_wrong_layout_is_refused_on_reading() -> None:
    stage = {"name": "prune", "task": "classification", "steps": 1, "layout": "sparsbert"}
    with pytest.raises(
        ValueError, match=r"stage .prune., layout: expected one of prune-ofa, .*'spar"
    ):
        parse({"name": "own", "stages": [stage]})


@pytest.mark.parametrize(
    ("recipe", "changes", "place", "message"),
    [
        ("dense", [], "paper", r"'teacher', the last .* no layout .*teacher.layout=NAME.* cap,"),
        (
            "sparsebert",
            ["prune.quantization.scales=row"],
            "paper",
            "'sparsebert' holds floats, and",
        ),
        ("prune-once-for-all", ["quantize.quantization=null"], "paper", "holds integers, and"),
        ("nxmiformer", ["compress.quantization.scales=row"], "paper", "tensor or chunk:R, got row"),
        (
            "nxmiformer",
            ["compress.quantization.per={query: null, key: int4}"],
            "paper",
            "every encoder layer quantized alike",
        ),
        (
            "nxmiformer",
            ["compress.pruning.per={query: '1:4', key: null}"],
            "paper",
            "one of 1:4, .* in every encoder layer, got 1:4, 2:4",
        ),
        (
            "prune-once-for-all",
            ["quantize.quantization.scales=row"],
            "paper",
            "int8, scales tensor and activations static, got int8 with scales row",
        ),
        ("movement", ["prune.pruning.structure='block:5x4@0.5'"], "paper", "divide every matrix"),
        ("movement", ["prune.pruning.structure='2:4'"], "paper", "fits, got movement with 2:4"),
        (
            "movement",
            ["prune.pruning.per={query: null}"],
            "paper",
            "every encoder layer pruned .*, got .*layer.0.attention.self.query dense; change",
        ),
        ("movement", ["prune.pruning.pooler=true"], "paper", "got bert.pooler.dense pruned"),
        ("soft-movement", ["prune.pruning.exclude=query"], "paper", "every encoder layer pruned"),
        (
            "sparsebert",
            ["prune.pruning.per={query: null}", "prune.layout=cap"],
            "paper",
            "every encoder layer pruned",
        ),
        (
            "dense",
            ["teacher.layout=nxm"],
            "paper",
            "'nxm': expected a pruning or a quantization section, got neither",
        ),
        ("cap-structured", ["prune.pruning={method: lock}", "prune.layout=cap"], "taken", "taken:"),
        (
            "gradual-magnitude",
            ["prune.layout=cap-structured"],
            "paper",
            "whole heads and neurons .* got magnitude",
        ),
        ("sparsebert", [], "taken", "taken: exists already"),
        ("sparsebert", [], "out", "expected a directory apart from"),
        ("sparsebert", [], "out/paper", "expected a directory apart from"),
        ("sparsebert", [], "out.training/paper", "expected a directory apart from"),
        ("sparsebert", [], ".", "expected a directory apart from"),
    ],
)
def test_refused_before_anything_is_trained(
    recipe: str,
    changes: list[str],
    place: str,
    message: str,
    checkpoints: Any,
    labelled: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "taken").mkdir()
    monkeypatch.setattr(run.StageRunner, "stage", lambda *_: pytest.fail("it trains"))
    with pytest.raises((ValueError, FileExistsError), match=message):
        train(
            checkpoints["bert"],
            recipe,
            labelled,
            tmp_path / "out",
            paper_out=tmp_path / place,
            changes=changes,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_what_the_layout_cannot_hold_leaves_the_plain_result(
    checkpoints: Any, labelled: Any, tmp_path: Path
) -> None:
    # Which zeros a lock keeps, nobody knows before.
    loose = {"method": "magnitude", "structure": "unstructured@0.5", "schedule": {"end": 0}}
    stage = {"task": "classification", "steps": 2}
    stages = [
        {"name": "prune", **stage, "pruning": loose},
        {"name": "tune", **stage, "pruning": {"method": "lock"}, "layout": "nxm"},
    ]
    out, paper = tmp_path / "out", tmp_path / "paper"
    recipe = {"name": "own", "stages": stages}
    with pytest.raises(ValueError, match=r"paper: not written: layout 'nxm'.* is whole, in .*out"):
        train(checkpoints["bert"], recipe, labelled, out, paper_out=paper)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(sr.convert(out, tmp_path / "packed", progress=False).layers) == 12


def test_the_report_says_how_to_open_them() -> None:
    stage = StageReport("prune", "classification", 1, 1.0, {}, {"a": 0.0}, 0.0)
    paper = PaperFiles(Path("my paper"), "cap", {"threshold": 0.25})
    report = TrainReport("own", Path("out"), 0, (stage,), 1.0, paper)
    assert json.loads(json.dumps(report.to_dict()))["paper"] == {
        "directory": "my paper",
        "layout": "cap",
        "finalise": {"threshold": 0.25},
    }
    inspect, convert = paper.commands()
    assert inspect == "sparse-runtime inspect 'my paper' --finalise threshold=0.25"
    assert convert.startswith("sparse-runtime convert 'my paper' 'my paper-packed' --finalise")
