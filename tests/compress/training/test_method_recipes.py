"""Recipes of CAP, movement, group lasso, NxMiFormer and oBERT, from checkpoint to directory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sparse_runtime as sr
from sparse_runtime.compress.patterns import Pattern
from sparse_runtime.compress.training.reading import load_recipe
from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.trainer import PrunerCallback

SHORT = ["teacher.epochs=1", "*.batch_size=15"]
# 90 rows in batches of 15: 6 steps an epoch.
CASES: dict[str, list[str]] = {
    "movement": ["prune.epochs=2", "prune.pruning.structure=unstructured@0.75"],
    "soft-movement": ["prune.epochs=2", "prune.pruning.score_learning_rate=0.5"],
    "cap": ["prune.epochs=2", "prune.pruning.structure=unstructured@0.75"],
    "cap-structured": ["prune.epochs=2", "prune.pruning.ratios=[0.25,0.5]", "prune.lr_cycles=2"],
    "obert": [
        "prune.epochs=2",
        "prune.pruning.gradients=8",
        "prune.pruning.batch_size=4",
        "prune.pruning.structure=unstructured@0.75",
        "prune.pruning.schedule.initial=0.4",
    ],
    "group-lasso": ["prune.epochs=2"],
    "nxmiformer": ["compress.epochs=2"],
    "nxmiformer-sequential": ["prune.epochs=2", "quantize.epochs=2"],
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The encoder's matrices."""
    return {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if ".layer." in name and tensor.ndim == 2
    }


ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=ON_CUDA)]


def run(
    recipe: str, checkpoints: Any, labelled: Any, folder: Path, *extra: str, device: str = "cpu"
) -> Path:
    train(
        checkpoints["bert"],
        recipe,
        labelled,
        folder / "out",
        changes=[*SHORT, *CASES[recipe], *extra],
        device=device,
    )
    return folder / "out"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recipe", CASES)
def test_result_has_the_recipes_zeros(
    recipe: str, device: str, checkpoints: Any, labelled: Any, tmp_path: Path
) -> None:
    out = run(recipe, checkpoints, labelled, tmp_path, device=device)
    matrices = weights(out)
    assert len(matrices) == 12
    zeros = {name: float((one == 0).double().mean()) for name, one in matrices.items()}
    assert not any((one == 0).logical_and(one.signbit()).any() for one in matrices.values())
    total = sum(int((one == 0).sum()) for one in matrices.values()) / sum(
        one.numel() for one in matrices.values()
    )
    if recipe in ("movement", "cap"):
        assert all(share == pytest.approx(0.75, abs=0.001) for share in zeros.values())
    elif recipe == "soft-movement":
        assert 0.05 < total < 1
    elif recipe == "cap-structured":
        assert total == pytest.approx(0.5, abs=0.02)
    elif recipe == "obert":
        assert total == pytest.approx(0.75, abs=0.001) and len(set(zeros.values())) > 1
    elif recipe == "group-lasso":
        pattern = Pattern.parse("block:1x4@0.8")
        assert all(torch.equal(pattern.mask(w.abs()), w != 0) for w in matrices.values())
    else:
        assert all((w.view(-1, 4) != 0).sum(1).max() <= 2 for w in matrices.values())
    record = json.loads((out / "compression.json").read_text())
    assert record["recipe"] == recipe and str(tmp_path) not in json.dumps(record)


def test_packing_sees_what_each_method_left(
    checkpoints: Any, labelled: Any, tmp_path: Path
) -> None:
    nxm = run("nxmiformer", checkpoints, labelled, tmp_path / "nxm")
    report = sr.convert(nxm, tmp_path / "packed-nxm")
    assert {str(layer.structure) for layer in report.layers} == {"2:4"}
    assert {layer.values for layer in report.layers} == {"int8"}
    heads = run("cap-structured", checkpoints, labelled, tmp_path / "heads")
    sr.convert(heads, tmp_path / "packed-heads", values="fp32")
    cropped = sum(
        tensor.numel()
        for name, tensor in load_file(tmp_path / "packed-heads" / "model.safetensors").items()
        if ".layer." in name
    )
    assert cropped < 0.6 * sum(one.numel() for one in weights(heads).values())


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_heads_removed_while_the_rest_is_quantized(
    activations: str, checkpoints: Any, labelled: Any, tmp_path: Path
) -> None:
    quantization = f"{{weights: int8, scales: row, activations: {activations}}}"
    out = run(
        "cap-structured", checkpoints, labelled, tmp_path, f"prune.quantization={quantization}"
    )
    gone = {
        name: int((one == 0).all(1).sum())
        for name, one in weights(out).items()
        if "intermediate" in name
    }
    report = sr.convert(out, tmp_path / "packed")
    assert sum(layer.neurons for layer in report.cropped) == sum(gone.values()) > 0
    assert {layer.values for layer in report.layers} == {"int8"}
    sr.convert(out, tmp_path / "whole", crop="none")
    ids = torch.arange(5, 25).view(2, 10)
    models = [
        sr.SparseModel.from_pretrained(tmp_path / name, backend="reference")
        for name in ("packed", "whole")
    ]
    assert torch.equal(*(model(input_ids=ids)[0] for model in models))


def test_variants_of_nxmiformer(checkpoints: Any, labelled: Any, tmp_path: Path) -> None:
    ste = "compress.pruning={method: masked-ste, structure: '2:4'}"
    masked = run("nxmiformer", checkpoints, labelled, tmp_path / "ste", ste)
    both = run(
        "nxmiformer",
        checkpoints,
        labelled,
        tmp_path / "both",
        "compress.quantization=null",
        "compress.pruning.values=int4",
    )
    for folder in (masked, both):
        assert all((w.view(-1, 4) != 0).sum(1).max() <= 2 for w in weights(folder).values())
    for weight in weights(both).values():
        assert all(len(chunk.unique()) <= 15 for chunk in weight.split(32))
    mixed = run(
        "nxmiformer",
        checkpoints,
        labelled,
        tmp_path / "mixed",
        "compress.pruning.per={query: '2:4', key: null}",
        "compress.quantization.per={query: null, key: int4}",
    )
    report = sr.convert(mixed, tmp_path / "packed")
    by_name = {layer.name: layer for layer in report.layers}
    key = by_name["bert.encoder.layer.0.attention.self.key"]
    assert by_name["bert.encoder.layer.0.attention.self.query"].structure == "2:4"
    assert key.values == "int4" and key.density > 0.75


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_nxmiformer_in_sequence_keeps_its_mask_and_ends_on_the_grid(
    values: str, checkpoints: Any, labelled: Any, tmp_path: Path
) -> None:
    change = f"quantize.quantization.weights={values}"
    changes = [*SHORT, *CASES["nxmiformer-sequential"], change]
    recipe = load_recipe("nxmiformer-sequential", changes)
    first = replace(recipe, stages=recipe.stages[:2])
    train(checkpoints["bert"], first, labelled, tmp_path / "pruned")
    # The same run, stopped after ADMM; the whole recipe goes on from that model.
    given = {"prune": tmp_path / "pruned"}
    train(checkpoints["bert"], recipe, labelled, tmp_path / "out", given=given)
    whole = run("nxmiformer-sequential", checkpoints, labelled, tmp_path / "whole", change)
    pruned, found = weights(tmp_path / "pruned"), weights(tmp_path / "out")
    levels = {"int8": 127, "int4": 7}[values]
    for name, weight in found.items():
        assert torch.equal(weight, weights(whole)[name]), name
        # ADMM ends on the pattern, in floats; training goes on inside it.
        assert ((pruned[name].view(-1, 4) != 0).sum(1) == 2).all()
        assert not weight[pruned[name] == 0].any(), name
        assert not torch.equal(weight, pruned[name])
        for chunk in weight.split(32):
            steps = chunk / (chunk.abs().max() / levels)
            torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    report = sr.convert(tmp_path / "out", tmp_path / "packed")
    assert {(str(layer.structure), layer.values) for layer in report.layers} == {("2:4", values)}


class Interrupted(Exception):
    """Stands for a machine that goes away."""


@pytest.mark.parametrize("recipe", ["cap", "cap-structured", "nxmiformer"])
def test_interrupted_runs_end_as_if_they_had_not_been(
    recipe: str, checkpoints: Any, labelled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 12 steps, saved at 4 and 8; gone at 9. The second stage is the one that is resumed.
    whole = weights(run(recipe, checkpoints, labelled, tmp_path / "whole"))
    arguments = (checkpoints["bert"], recipe, labelled, tmp_path / "parts")
    changes = [*SHORT, *CASES[recipe]]
    with monkeypatch.context() as patch:
        patch.setattr(PrunerCallback, "on_pre_optimizer_step", _gone)
        with pytest.raises(Interrupted):
            train(*arguments, changes=changes, save_every=4)
    train(*arguments, changes=changes, save_every=4, resume=True)
    for name, weight in weights(tmp_path / "parts").items():
        assert torch.equal(weight, whole[name]), name


def _gone(callback: PrunerCallback, args: Any, state: Any, control: Any, **_: Any) -> None:
    if state.global_step == 9:
        raise Interrupted
