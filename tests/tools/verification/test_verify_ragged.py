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


def test_originals_that_transformers_cannot_run_are_refused(
    make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint(tmp_path / "source", "distilbert", "DistilBertModel")
    change(
        source,
        lambda t: (
            [t.pop(n) for n in list(t) if n.startswith("transformer.layer.0.ffn")]
            and [t.pop(f"transformer.layer.0.output_layer_norm.{p}") for p in ("weight", "bias")]
        ),
    )
    stated(monkeypatch, absent=("transformer.layer.0.ffn",))
    convert(source, tmp_path / "packed", values="fp32")
    with pytest.raises(ValueError, match=r"lacks transformer.layer.0.ffn; .* not for distilbert"):
        verify(tmp_path / "packed", source, TEXTS, progress=False)
