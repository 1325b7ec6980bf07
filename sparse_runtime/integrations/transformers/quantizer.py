"""What transformers calls while it loads and saves a model with packed layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

# Both are public, though the package does not list them for type checkers.
from transformers.quantizers import (  # type: ignore[attr-defined]
    HfQuantizer,
    register_quantizer,
)

from ...store.model import SECTION
from .config import METHOD, SparseRuntimeConfig
from .loading import finish_layers, insert_layers
from .packing import pack_layers, unpack_layers
from .saving import describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register_quantizer(METHOD)
class SparseRuntimeHfQuantizer(HfQuantizer):
    """Opens packed directories, and packs float checkpoints behind their loading.

    Names: a packed layer's tensors are called in the model as they are in the file, so nothing is
    renamed or converted on the way.
    """

    quantization_config: SparseRuntimeConfig

    def validate_environment(
        self, *args: Any, device_map: dict[str, Any] | str | None = None, **kwargs: Any
    ) -> None:
        """Raise ValueError where the layers would be spread over devices, or lie on none."""
        if not isinstance(device_map, dict):
            return
        devices = sorted(set(map(str, device_map.values())))
        if len(devices) > 1 or devices in (["disk"], ["meta"]):
            raise ValueError(
                "device_map: packed layers run on one device and are not offloaded, got "
                f"{devices}; name one, such as device_map='cpu'"
            )

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        section = getattr(model.config, SECTION, None)
        if section is None and self.pre_quantized:
            raise ValueError(
                f"config.json: quantization_config names {METHOD!r} and the section {SECTION!r} "
                "that describes the layers is missing; convert the checkpoint again"
            )
        if section is None:
            return
        changed = set(self.quantization_config.to_dict()) - {"quant_method"}
        if changed:
            raise ValueError(
                f"quantization_config: the model is packed already, so {sorted(changed)} cannot "
                "be chosen; leave them out, or name the float checkpoint"
            )
        self.pre_quantized = True  # false for directories written before the field was
        insert_layers(model, section, kwargs.get("checkpoint_files"))

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        # A call that records gradients would be refused for those of embeddings and norms.
        model.requires_grad_(False)
        if self.pre_quantized:
            finish_layers(model)
            return model
        pack_layers(model, self.quantization_config)
        # From here on it is a packed model as any other, described by its section alone.
        self.pre_quantized = True
        self.quantization_config = SparseRuntimeConfig()
        model.config.quantization_config = self.quantization_config
        return model

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | str | None = None
    ) -> PreTrainedModel:
        # The configuration's dtype, which transformers passes, is a name once it was saved.
        chosen = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        unpack_layers(model, chosen or model.dtype)
        return model.requires_grad_(True)

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors to write; the model's config gets the section that describes them."""
        state, section = describe(model)
        setattr(model.config, SECTION, section.to_dict())
        return state, {}

    def is_serializable(self) -> bool:
        """Whether ``save_pretrained`` works: it writes what ``SparseModel`` opens, too."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed layers have no gradients."""
        return False
