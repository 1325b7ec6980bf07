"""A float model that transformers has loaded -> the same with packed layers, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ... import __version__
from ...checkpoints import kind_of, source_name
from ...checkpoints.errors import listed
from ...layers import Linear, replace_linears
from ...store.model import SECTION
from .config import SparseRuntimeConfig
from .saving import describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pack_layers(model: PreTrainedModel, config: SparseRuntimeConfig) -> None:
    """Pack the layers that :func:`sparse_runtime.convert` packs, in place.

    Raises:
        ValueError: there are none, the checkpoint lacks the weight of one, or it cannot be packed;
            names the layer.
    """
    layers = {name: module for name, module in model.named_modules() if _in_encoder(module, name)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__}: expected linear layers in an encoder stack "
            "('encoder.layer.0...', 'transformer.layer.0...'), got none; this architecture is not "
            "supported yet, sparse_runtime.replace_linears packs any layers you choose"
        )
    _refuse_made_up(model, layers)
    replace_linears(model, filter_fn=_in_encoder, **config.arguments)
    source = model.config.name_or_path or ""
    provenance = {
        "source": source_name(source, Path(source)),
        "sparse_runtime": __version__,
        "arguments": config.arguments,
    }
    _, section = describe(model, provenance)
    setattr(model.config, SECTION, section.to_dict())


def _refuse_made_up(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> None:
    """Raise ValueError for weights that transformers has drawn at random."""
    # transformers marks each tensor that it has taken from a file.
    made_up = [
        f"{name}.weight"
        for name, layer in layers.items()
        if not getattr(layer.get_parameter("weight"), "_is_hf_initialized", False)
    ]
    if made_up:
        raise ValueError(
            f"{type(model).__name__}: the checkpoint does not hold {listed(made_up)}, which "
            "transformers fills at random, so they are not packed; where a pruning or quantization "
            "tool wrote it, convert it with `sparse-runtime convert` and load what that wrote"
        )


def unpack_layers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace packed layers by ``nn.Linear`` with their dequantized weights, in place.

    Outputs differ from the packed model's where that quantizes activations.
    """
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, Linear):
            continue
        bias = layer.bias
        dense = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
        state = {"weight": layer.weight} | ({} if bias is None else {"bias": bias.detach()})
        dense.load_state_dict(state, assign=True)
        model.set_submodule(name, dense.to(dtype).train(layer.training))
    delattr(model.config, SECTION)


def _in_encoder(module: nn.Module, name: str) -> bool:
    """Embeddings, pooler and heads keep their values, as in converted directories."""
    if not isinstance(module, nn.Linear):
        return False
    return kind_of(f"{name}.weight", (module.out_features, module.in_features)) == "encoder_linear"
