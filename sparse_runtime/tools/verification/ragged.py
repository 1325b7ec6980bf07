"""What transformers' own classes lack to run a structurally pruned original.

Smaller layers are brought to the sizes of config.json with zeros, which add nothing; halves that
are absent and norms without statistics are put into the model in place of its modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...checkpoints import Checkpoint
from ...encoders.families import FAMILIES
from ...encoders.layer_shapes import absent_modules
from ...encoders.settings import NO_NORM
from ..integers import dense_tensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class _NoNorm(nn.Module):
    """``x * weight + bias``."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class _PassOn(nn.Module):
    """The end of a half that is absent: gives the residual."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return input_tensor


def check_runs_in_transformers(checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    """Raise ValueError for an original that no class of transformers can be made to run."""
    where = checkpoint.directory.name
    if checkpoint.head_size not in (None, config.hidden_size / config.num_attention_heads):
        raise ValueError(
            f"source: {where} has heads of {checkpoint.head_size} features in a hidden size of "
            f"{config.hidden_size}, which transformers does not run, so there is no original to "
            "compare with; compare backends with verify's reference, or evaluate on a task"
        )
    if checkpoint.absent and FAMILIES[config.model_type].layer.ffn_out != "output.dense":
        raise ValueError(
            f"source: {where} lacks {', '.join(checkpoint.absent)}; originals without halves of "
            f"layers are run for BERT's own layers only, not for {config.model_type}"
        )


def whole_tensors(checkpoint: Checkpoint, config: PretrainedConfig) -> dict[str, Tensor] | None:
    """Every tensor at the size that config.json states; None where all have it already."""
    sizes = _whole_sizes(checkpoint, config)
    shapes = {name: checkpoint.tensors.shape(name) for name in checkpoint.tensors}
    smaller = any(shapes.get(name, shape) != shape for name, shape in sizes.items())
    if not smaller and not checkpoint.absent:
        return None
    absent = absent_modules(FAMILIES[config.model_type], checkpoint.absent)
    tensors = dict(dense_tensors(checkpoint))
    for name, shape in sizes.items():
        if name in tensors:
            tensors[name] = _widened(tensors[name], shape)
        elif name.rpartition(".")[0] in absent:
            tensors[name] = torch.zeros(shape)  # is passed by
    return tensors


def replace_modules(
    model: PreTrainedModel, checkpoint: Checkpoint, config: PretrainedConfig
) -> None:
    """Put norms without statistics and absent halves into the model."""
    if getattr(config, "layer_norm_type", None) == NO_NORM:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.LayerNorm):
                    setattr(parent, name, _NoNorm(child))
    for sublayer in checkpoint.absent:
        layer, _, part = sublayer.rpartition(".")
        inside = layer.removeprefix(f"{model.base_model_prefix}.")
        half = f"{inside}.attention" if part == "attention" else inside
        model.base_model.set_submodule(f"{half}.output", _PassOn())


def _whole_sizes(checkpoint: Checkpoint, config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Sizes of the tensors in the stack by full name, as config.json has them."""
    family = FAMILIES[config.model_type]
    hidden, inner = config.hidden_size, getattr(config, family.intermediate_key)
    names = family.layer
    linears = {
        **{name: (hidden, hidden) for name in (*names.qkv, names.attention_out)},
        names.ffn_in: (inner, hidden),
        names.ffn_out: (hidden, inner),
    }
    prefix = family.prefix if any(n.startswith(family.prefix) for n in checkpoint.tensors) else ""
    sizes: dict[str, tuple[int, ...]] = {}
    for i in range(config.num_hidden_layers):
        base = f"{prefix}{family.stack}.{i}."
        for name, shape in linears.items():
            sizes |= {f"{base}{name}.weight": shape, f"{base}{name}.bias": shape[:1]}
        for name in (names.attention_norm, names.ffn_norm):
            sizes |= {f"{base}{name}.{part}": (hidden,) for part in ("weight", "bias")}
    return sizes


def _widened(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if any(size > whole for size, whole in zip(tensor.shape, shape, strict=True)):
        return tensor  # transformers says what does not fit
    whole = tensor.new_zeros(shape)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole
