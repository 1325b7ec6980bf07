"""A float model that transformers has loaded -> the same with packed layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ... import __version__
from ...checkpoints import kind_of
from ...layers import replace_linears
from ...store.model import SECTION
from .config import SparseRuntimeConfig
from .saving import describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pack_layers(model: PreTrainedModel, config: SparseRuntimeConfig) -> None:
    """Pack the layers that :func:`sparse_runtime.convert` packs, in place.

    Raises:
        ValueError: there are none, or a weight cannot be packed; names the layer.
    """
    if not any(_in_encoder(module, name) for name, module in model.named_modules()):
        raise ValueError(
            f"{type(model).__name__}: expected linear layers in an encoder stack "
            "('encoder.layer.0...', 'transformer.layer.0...'), got none; this architecture is not "
            "supported yet, sparse_runtime.replace_linears packs any layers you choose"
        )
    replace_linears(model, filter_fn=_in_encoder, **config.arguments)
    provenance = {
        "source": model.config.name_or_path,
        "sparse_runtime": __version__,
        "arguments": config.arguments,
    }
    _, section = describe(model, provenance)
    setattr(model.config, SECTION, section.to_dict())


def _in_encoder(module: nn.Module, name: str) -> bool:
    """Embeddings, pooler and heads keep their values, as in converted directories."""
    if not isinstance(module, nn.Linear):
        return False
    return kind_of(f"{name}.weight", (module.out_features, module.in_features)) == "encoder_linear"
