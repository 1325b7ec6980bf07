"""What a trained model is to those who write it: weights, masks, quantization."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..checkpoints.errors import listed
from .fake_quant import read_quantization
from .masks import masks_of, original_weight
from .statement import LinearQuantization
from .targets import encoder_linears
from .writing import plain_tensors


@dataclass(frozen=True)
class Trained:
    """What the writers need of a model.

    Attributes:
        model: the model.
        config: fields of config.json.
        tensors: as it computes with them, zeros baked in.
        masks: bool [out, in] of its pruned layers by name.
        dense: the weights below the masks, by the name of the layer.
        quantization: of its fake-quantized layers by name.
    """

    model: nn.Module
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    masks: dict[str, Tensor]
    dense: dict[str, Tensor]
    quantization: dict[str, LinearQuantization]

    @classmethod
    def of(cls, model: Any) -> Trained:
        """Of a transformers model; without our masks its zeros are taken for them."""
        config = json.loads(model.config.to_json_string(use_diff=False))
        config.pop("_name_or_path", None)
        config["architectures"] = [type(model).__name__]
        linears = encoder_linears(model)
        masks = masks_of(model) or {n: original_weight(m) != 0 for n, m in linears.items()}
        chosen = {name: model.get_submodule(name) for name in masks.keys() | linears.keys()}
        dense = {name: original_weight(m).detach().clone() for name, m in chosen.items()}
        return cls(model, config, plain_tensors(model), masks, dense, read_quantization(model))

    def with_dense(self) -> dict[str, Tensor]:
        """All tensors, what lies below the masks in the place of the masked weights."""
        below = {f"{name}.weight": weight for name, weight in self.dense.items()}
        return {**self.tensors, **below}

    def refuse_quantized(self, layout: str) -> None:
        """Raise ValueError where a layer is quantized, for a layout that holds floats alone."""
        if self.quantization:
            raise ValueError(
                f"layout {layout!r}: holds floats, and {listed(self.quantization, 2)} are "
                "quantized; use 'prune-ofa-qat' or 'nxm', or write_checkpoint"
            )
