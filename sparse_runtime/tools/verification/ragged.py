"""What transformers' own classes lack to run a structurally pruned original.

Smaller layers are brought to the sizes of config.json with zeros, which add nothing, and a smaller
hidden size to that of all heads, whose norms then count the channels that are left. Norms without
statistics, and none where a half is absent, take the place of the model's.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoints import Checkpoint
from ...encoders.architecture import Architecture
from ...encoders.families import FAMILIES
from ...encoders.layer_shapes import absent_modules
from ...encoders.settings import BASE, NO_NORM
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


class _NormOfFirst(nn.Module):
    """LayerNorm of the first channels; the others are zeros and stay it."""

    def __init__(self, norm: nn.LayerNorm, channels: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        size = self.channels
        weight, bias = self.weight[:size], self.bias[:size]
        first = F.layer_norm(x[..., :size], (size,), weight, bias, self.eps)
        return F.pad(first, (0, x.shape[-1] - size))


def whole_config(checkpoint: Checkpoint, config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with as many hidden channels as all heads have features.

    Raises:
        ValueError: no class of transformers can be made to run the original.
    """
    if checkpoint.head_size is None:
        return config
    whole = checkpoint.head_size * config.num_attention_heads
    if whole < config.hidden_size or FAMILIES[config.model_type].projection is not None:
        raise ValueError(
            f"source: {checkpoint.directory.name} has heads of {checkpoint.head_size} features in "
            f"a hidden size of {config.hidden_size} of {config.model_type}, which transformers "
            "does not run, so there is no original to compare with; compare backends with "
            "verify's reference, or evaluate on a task"
        )
    changed = copy.deepcopy(config)
    changed.hidden_size = whole
    return changed


def whole_tensors(
    checkpoint: Checkpoint, config: PretrainedConfig, task: str
) -> dict[str, Tensor] | None:
    """Every tensor at the size that the configuration states; None where all have it already."""
    sizes = _whole_sizes(checkpoint, config) | _sizes_outside(checkpoint, config, task)
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
    model: PreTrainedModel, checkpoint: Checkpoint, config: PretrainedConfig, kept: int
) -> None:
    """Put other norms into the model, and none where a half is absent.

    Args:
        model: of transformers, at the sizes of ``config``.
        checkpoint: the original.
        config: of the model.
        kept: the original's hidden size; outputs are cut to it.
    """
    no_norm = getattr(config, "layer_norm_type", None) == NO_NORM
    for parent in list(model.modules()) if no_norm or kept < config.hidden_size else ():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, _NoNorm(child) if no_norm else _NormOfFirst(child, kept))
    names = FAMILIES[config.model_type].layer
    for sublayer in checkpoint.absent:
        layer, _, part = sublayer.rpartition(".")
        inside = layer.removeprefix(f"{model.base_model_prefix}.")
        norm = names.attention_norm if part == "attention" else names.ffn_norm
        # Its linear layers are zeros, so what reaches the norm is the residual.
        model.base_model.set_submodule(f"{inside}.{norm}", nn.Identity())
    if kept < config.hidden_size:
        model.register_forward_hook(lambda _model, _args, output: _narrowed(output, kept))


def _narrowed(output: Any, kept: int) -> Any:
    """The outputs with the channels that are left."""
    if output.get("last_hidden_state") is not None:
        output["last_hidden_state"] = output["last_hidden_state"][..., :kept]
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(states[..., :kept] for states in output["hidden_states"])
    return output


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
    prefix = _prefix(checkpoint, family)
    sizes: dict[str, tuple[int, ...]] = {}
    for i in range(config.num_hidden_layers):
        base = f"{prefix}{family.stack}.{i}."
        for name, shape in linears.items():
            sizes |= {f"{base}{name}.weight": shape, f"{base}{name}.bias": shape[:1]}
        for name in (names.attention_norm, names.ffn_norm):
            sizes |= {f"{base}{name}.{part}": (hidden,) for part in ("weight", "bias")}
    return sizes


def _sizes_outside(
    checkpoint: Checkpoint, config: PretrainedConfig, task: str
) -> dict[str, tuple[int, ...]]:
    """The same for embeddings and head, of which only hidden channels may be missing."""
    family, hidden = FAMILIES[config.model_type], config.hidden_size
    if checkpoint.head_size is None:
        return {}
    prefix, tensors = _prefix(checkpoint, family), checkpoint.tensors
    names = [f"{prefix}{name}.weight" for _, name in family.tables]
    sizes = {name: (*tensors.shape(name)[:1], hidden) for name in names if name in tensors}
    norms = [f"{prefix}{family.embedding_norm}"]
    pooler = () if family.pooler is None else (family.pooler,)
    for step in pooler if task == BASE else family.heads[task].steps:
        name = f"{prefix}{step.linear}" if step.in_base else step.linear
        if f"{name}.weight" in tensors:
            rows = hidden if step.size == "hidden" else tensors.shape(f"{name}.weight")[0]
            sizes |= {f"{name}.weight": (rows, hidden), f"{name}.bias": (rows,)}
        norms += [] if step.norm is None else [step.norm]
    return sizes | {f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")}


def _prefix(checkpoint: Checkpoint, family: Architecture) -> str:
    found = any(name.startswith(family.prefix) for name in checkpoint.tensors)
    return family.prefix if found else ""


def _widened(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if any(size > whole for size, whole in zip(tensor.shape, shape, strict=True)):
        return tensor  # transformers says what does not fit
    whole = tensor.new_zeros(shape)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole
