"""What the recipes train, written in the papers' own layouts, is read back with the same zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sparse_runtime.checkpoints import open_checkpoint
from sparse_runtime.compress.training.run import train
from sparse_runtime.testing.exporters.movement import export_movement
from sparse_runtime.testing.exporters.nxm import export_nxm
from sparse_runtime.testing.exporters.structured_masks import export_mask_buffers


def trained(
    recipe: str, checkpoints: Any, labelled: Any, folder: Path, *changes: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a short run."""
    changes = ("teacher.epochs=1", "*.batch_size=15", *changes)
    train(checkpoints["bert"], recipe, labelled, folder, changes=changes)
    config = json.loads((folder / "config.json").read_text())
    return config, load_file(folder / "model.safetensors")


def test_cap_as_weights_and_scores(checkpoints: Any, labelled: Any, tmp_path: Path) -> None:
    config, tensors = trained(
        "cap",
        checkpoints,
        labelled,
        tmp_path / "plain",
        "prune.epochs=1",
        "prune.pruning.structure=unstructured@0.75",
    )
    export_movement(tmp_path / "own", config, tensors, "topK")
    source = open_checkpoint(tmp_path / "own", finalise={"threshold": 0.25})
    _same(source, tensors)


def test_cap_structured_as_dense_weights_and_masks(
    checkpoints: Any, labelled: Any, tmp_path: Path
) -> None:
    config, tensors = trained(
        "cap-structured",
        checkpoints,
        labelled,
        tmp_path / "plain",
        "prune.epochs=1",
        "prune.pruning.ratios=[0.5]",
    )
    layers = [f"bert.encoder.layer.{i}" for i in range(2)]
    reading = [tensors[f"{layer}.attention.output.dense.weight"] for layer in layers]
    heads = torch.stack([(w.view(32, 4, 8) != 0).any(2).any(0).float() for w in reading])
    outputs = [tensors[f"{layer}.output.dense.weight"] for layer in layers]
    neurons = torch.stack([(w != 0).any(0).float() for w in outputs])
    assert heads.mean() == 0.5 and neurons.mean() == 0.5
    # Dense before: what the masks stand for is put back at random.
    dense = {
        name: torch.where(t == 0, torch.randn_like(t), t)
        if name.endswith(("output.dense.weight",))
        else t
        for name, t in tensors.items()
    }
    export_mask_buffers(tmp_path / "own", config, dense, heads, neurons)
    _same(open_checkpoint(tmp_path / "own"), tensors, ("output.dense.weight",))


def test_nxmiformer_as_weights_to_be_projected(
    checkpoints: Any, labelled: Any, tmp_path: Path
) -> None:
    config, tensors = trained(
        "nxmiformer",
        checkpoints,
        labelled,
        tmp_path / "plain",
        "compress.epochs=1",
        "compress.quantization=null",
    )
    file = tmp_path / "nxm.json"
    export_nxm(tmp_path / "own", config, tensors, "NxM", file, N=4, M=2)
    _same(open_checkpoint(tmp_path / "own", finalise={"nxm": str(file)}), tensors)


def _same(source: Any, tensors: dict[str, Tensor], endings: tuple[str, ...] = ("weight",)) -> None:
    compared = 0
    for name, tensor in tensors.items():
        if ".layer." in name and tensor.ndim == 2 and name.endswith(endings):
            assert torch.equal(source.tensors[name], tensor), name
            compared += 1
    assert compared >= 4
