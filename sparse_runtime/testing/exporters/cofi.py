"""Writes CoFi's models: cut, as its authors publish them; whole with masks, as training does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .directory import write_directory


def export_cofi_run(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
) -> None:
    """Write a directory of a pruning run.

    Args:
        directory: to write.
        config: of the whole model.
        tensors: of the whole model.
        masks: CoFi's, by its names: float32 head_z [layers, heads], head_layer_z [layers],
            intermediate_z [layers, neurons], mlp_z [layers], hidden_z [hidden size].
    """
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    unused = {
        "layer_transformation.weight": torch.eye(hidden),
        "layer_transformation.bias": torch.zeros(hidden),
    }
    write_directory(directory, _own_class(config), {**tensors, **unused})
    shapes = {"head_z": (layers, 1, -1, 1, 1), "intermediate_z": (layers, 1, 1, -1)}
    shaped = {name: z.reshape(shapes[name]) if name in shapes else z for name, z in masks.items()}
    torch.save(shaped, directory / "zs.pt")
    # The module that the masks come from, pickled whole.
    torch.save(torch.nn.Linear(1, 1), directory / "l0_module.pt")


def export_cofi(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
) -> None:
    """Write the cut model of masks that are 0 and 1; arguments as above, all five masks.

    config.json keeps the sizes of the whole model. Norms of halves without linear layers stay: an
    attention's with all channels, a feed-forward's with those that are left.
    """
    kept = masks["hidden_z"].nonzero().flatten()
    heads = masks["head_z"] * masks["head_layer_z"].unsqueeze(1)
    neurons = masks["intermediate_z"] * masks["mlp_z"].unsqueeze(1)
    size = config["hidden_size"] // config["num_attention_heads"]
    written = {"layer_transformation.bias": torch.zeros(config["hidden_size"])}
    written["layer_transformation.weight"] = torch.eye(config["hidden_size"])[:, kept]
    for name, tensor in tensors.items():
        layer, _, inside = name.partition(".layer.")[2].partition(".")
        module, _, part = inside.rpartition(".")
        if not layer:
            written[name] = _outside(name, tensor, kept)
            continue
        features = heads[int(layer)].repeat_interleave(size).nonzero().flatten()
        own = features if "attention" in module else neurons[int(layer)].nonzero().flatten()
        if module.endswith("LayerNorm"):
            whole = "attention" in module and not len(own)
            written[name] = tensor if whole else tensor[kept]
        elif len(own):
            last = module.endswith("output.dense")
            rows, columns = (kept, own) if last else (own, kept)
            written[name] = tensor[rows][:, columns] if part == "weight" else tensor[rows]
    pruned = {str(i): (row == 0).nonzero().flatten().tolist() for i, row in enumerate(heads)}
    write_directory(directory, {**_own_class(config), "pruned_heads": pruned}, written)


def _outside(name: str, tensor: Tensor, kept: Tensor) -> Tensor:
    if "LayerNorm" in name:
        return tensor[kept]
    reads = ("_embeddings.weight", "pooler.dense.weight", "classifier.dense.weight")
    return tensor[:, kept] if name.endswith((*reads, "qa_outputs.weight")) else tensor


def _own_class(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "architectures": [f"CoFi{name}" for name in config["architectures"]]}
