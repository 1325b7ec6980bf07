"""Structurally pruned originals: packed models are compared with what transformers can run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparse_runtime import checkpoints, verify
from sparse_runtime.encoders.families import FAMILIES
from sparse_runtime.encoders.layer_shapes import absent_modules
from sparse_runtime.testing.exporters.cofi import export_cofi
from sparse_runtime.tools import convert as convert_module
from sparse_runtime.tools.convert import convert
from sparse_runtime.tools.verification import run

TEXTS = ["a b c d", "one", "a longer text than the others are"]
LAYER = "encoder.layer."


def change(directory: Path, edit: Callable[[dict[str, torch.Tensor]], None], **fields: Any) -> Path:
    """Edit the tensors and the configuration of a checkpoint."""
    tensors = {
        name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()
    }
    edit(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))
    return directory


def cut_heads(tensors: dict[str, torch.Tensor]) -> None:
    """Heads 1 and 2 of 4 leave layer 0, all but 20 neurons layer 1: rows and columns are gone."""
    kept = torch.cat([torch.arange(8), torch.arange(24, 32)])
    attention = f"{LAYER}0.attention."
    for name in ("query", "key", "value"):
        for part in ("weight", "bias"):
            key = f"{attention}self.{name}.{part}"
            tensors[key] = tensors[key][kept]
    tensors[f"{attention}output.dense.weight"] = tensors[f"{attention}output.dense.weight"][:, kept]
    for part in ("weight", "bias"):
        key = f"{LAYER}1.intermediate.dense.{part}"
        tensors[key] = tensors[key][:20]
    tensors[f"{LAYER}1.output.dense.weight"] = tensors[f"{LAYER}1.output.dense.weight"][:, :20]


def drop_halves(tensors: dict[str, torch.Tensor]) -> None:
    """Layer 0 loses its attention, layer 1 its feed-forward, norms included."""
    gone = (f"{LAYER}0.attention.", f"{LAYER}1.intermediate.", f"{LAYER}1.output.")
    for name in [name for name in tensors if name.startswith(gone)]:
        del tensors[name]


def test_pruned_heads_relu_and_no_norm(make_checkpoint: Any, tmp_path: Path) -> None:
    """As nn_pruning's optimized models are."""
    source = make_checkpoint(tmp_path / "source", hidden_act="relu")
    change(source, cut_heads, pruned_heads={"0": [1, 2]}, layer_norm_type="no_norm")
    report = convert(source, tmp_path / "packed", values="fp32")
    assert report.cropped == []
    found = verify(tmp_path / "packed", source, TEXTS, progress=False)
    assert found.passed and found.output.relative < 1e-5
    # The same tensors under LayerNorm are another network.
    other = make_checkpoint(tmp_path / "other", hidden_act="relu")
    change(other, cut_heads, pruned_heads={"0": [1, 2]})
    assert not verify(tmp_path / "packed", other, TEXTS, progress=False).passed


def stated(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Make every checkpoint state what a reader of its layout would."""

    def opened(*arguments: Any, **options: Any) -> checkpoints.Checkpoint:
        checkpoint = checkpoints.open_checkpoint(*arguments, **options)
        for name, value in fields.items():
            setattr(checkpoint, name, value)
        return checkpoint

    monkeypatch.setattr(convert_module, "open_checkpoint", opened)
    monkeypatch.setattr(run, "open_checkpoint", opened)


def test_absent_halves(
    make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated(monkeypatch, absent=(f"{LAYER}0.attention", f"{LAYER}1.ffn"))
    source = change(make_checkpoint(tmp_path / "source"), drop_halves)
    convert(source, tmp_path / "packed", values="fp32")
    found = verify(tmp_path / "packed", source, TEXTS, progress=False)
    assert found.passed and found.output.relative < 1e-5


@pytest.mark.parametrize("family", ["distilbert", "mpnet", "roberta", "electra"])
def test_absent_halves_under_other_names(
    family: str, make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = {"distilbert": "DistilBert", "mpnet": "MPNet", "roberta": "Roberta"}
    name = f"{classes.get(family, 'Electra')}Model"
    source = make_checkpoint(tmp_path / "source", family, name)
    architecture = FAMILIES[family]
    absent = (f"{architecture.stack}.0.ffn", f"{architecture.stack}.1.attention")
    gone = absent_modules(architecture, absent)

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in [name for name in tensors if name.rpartition(".")[0] in gone]:
            del tensors[tensor]

    stated(monkeypatch, absent=absent)
    change(source, drop)
    convert(source, tmp_path / "packed", values="fp32")
    found = verify(tmp_path / "packed", source, TEXTS, progress=False)
    assert found.passed and found.output.relative < 1e-5


@pytest.mark.parametrize("name", ["BertModel", "BertForSequenceClassification"])
def test_hidden_sizes_that_were_pruned(name: str, make_checkpoint: Any, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", name=name)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    masks = {
        "head_z": torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0]]),
        "head_layer_z": torch.ones(2),
        "intermediate_z": (torch.arange(96).view(2, 48) % 5 > 0).float(),
        "mlp_z": torch.ones(2),
        "hidden_z": (torch.arange(32) % 7 > 0).float(),  # 27 of 32 stay, in 4 heads of 8
    }
    config = json.loads((source / "config.json").read_text())
    export_cofi(source, config, tensors, masks)
    convert(source, tmp_path / "packed", values="fp32")
    found = verify(tmp_path / "packed", source, TEXTS, progress=False)
    assert found.passed and found.output.relative < 1e-5
    assert all(layer.relative < 1e-5 for layer in found.layers)
    # One channel more is another network.
    masks["hidden_z"][0] = 1
    export_cofi(tmp_path / "other", config, tensors, masks)
    with pytest.raises(ValueError, match="hidden_size is 27 in the packed model and 28"):
        verify(tmp_path / "packed", tmp_path / "other", TEXTS, progress=False)


def test_pruned_hidden_size_under_a_norm_of_the_head(
    make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint(tmp_path / "source", name="BertForMaskedLM")

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in list(tensors.items()):
            for dim in range(tensor.ndim):
                heads = ".attention.self." in name and dim == 0
                heads |= name.endswith("attention.output.dense.weight") and dim == 1
                if tensor.shape[dim] == 32 and not heads:
                    tensors[name] = tensors[name].narrow(dim, 0, 27)

    change(source, cut, hidden_size=27)
    stated(monkeypatch, head_size=8)
    convert(source, tmp_path / "packed", values="fp32")
    found = verify(tmp_path / "packed", source, TEXTS, progress=False)
    assert found.passed and found.output.relative < 1e-5


def test_originals_that_transformers_cannot_run_are_refused(
    make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint(tmp_path / "source")

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".attention." in name]:
            by_head = tensors[name].t() if name.endswith("output.dense.weight") else tensors[name]
            if ".self." in name or name.endswith("output.dense.weight"):
                kept = by_head[torch.arange(32).view(4, 8)[:, :4].flatten()]
                tensors[name] = kept.t() if name.endswith("output.dense.weight") else kept

    change(source, cut)
    stated(monkeypatch, head_size=4)
    convert(source, tmp_path / "packed", values="fp32")
    with pytest.raises(ValueError, match="heads of 4 features in a hidden size of 32 of bert"):
        verify(tmp_path / "packed", source, TEXTS, progress=False)
