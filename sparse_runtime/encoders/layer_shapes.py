"""How large each layer is, where layers differ: by the packed tensors, never by what is missing.

Structured pruning leaves layers with fewer heads, a smaller feed-forward, or without one of the
two. Sizes follow from the tensors that are there; what is absent is stated in the packed model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .architecture import Architecture
from .settings import Settings

if TYPE_CHECKING:
    from ..store import PackedModel


@dataclass(frozen=True)
class LayerShape:
    """One layer's sizes.

    Attributes:
        heads: attention heads; 0 for a layer without attention.
        intermediate: feed-forward size; 0 for a layer without one.
    """

    heads: int
    intermediate: int


def read_layer_shapes(model: PackedModel, settings: Settings, stack: str) -> tuple[LayerShape, ...]:
    """The sizes of each layer.

    A layer whose tensors say nothing sound gets the sizes of config.json, so that comparing names
    and shapes reports it.

    Args:
        model: the packed model.
        settings: what its config.json says.
        stack: full name of the stack, such as "bert.encoder.layer".

    Raises:
        ValueError: ``absent`` names what the stack does not have, or a layer that lost all its
            heads is not stated as absent.
    """
    layers = range(_layers(model, settings, stack))
    known = {f"{stack}.{i}.{part}" for i in layers for part in ("attention", "ffn")}
    unknown = sorted(set(model.absent) - known)
    if unknown:
        raise ValueError(
            f"absent: {', '.join(unknown)}: expected names of {settings.layers} layers, "
            f"'{stack}.<i>.attention' or '{stack}.<i>.ffn'"
        )
    return tuple(
        LayerShape(
            heads=0
            if f"{stack}.{i}.attention" in model.absent
            else _heads(model, settings, stack, i),
            intermediate=0
            if f"{stack}.{i}.ffn" in model.absent
            else _intermediate(model, settings, stack, i),
        )
        for i in layers
    )


def _layers(model: PackedModel, settings: Settings, stack: str) -> int:
    """Layers to look at: one more than the packed model has something of shows what is missing."""
    names = (*model.linears, *model.tensors, *model.aliases, *model.absent)
    below = (name.removeprefix(f"{stack}.") for name in names if name.startswith(f"{stack}."))
    return min(settings.layers, len({name.partition(".")[0] for name in below}) + 1)


def absent_modules(architecture: Architecture, absent: Iterable[str]) -> set[str]:
    """Full names of the linears and norms that belong to sublayers stated as absent."""
    names = architecture.layer
    parts = {
        "attention": (*names.qkv, names.attention_out, names.attention_norm),
        "ffn": (names.ffn_in, names.ffn_out, names.ffn_norm),
    }
    layers = (sublayer.rpartition(".") for sublayer in absent)
    return {f"{layer}.{name}" for layer, _, part in layers for name in parts[part]}


def stored_though_absent(model: PackedModel, settings: Settings) -> list[str]:
    """Names of what the packed model holds of sublayers stated as absent."""
    modules = absent_modules(settings.architecture, model.absent)
    tensors = [name for name in model.tensors if name.rpartition(".")[0] in modules]
    return sorted([*(modules & model.linears.keys()), *tensors])


def _heads(model: PackedModel, settings: Settings, stack: str, i: int) -> int:
    most = settings.heads - len(settings.pruned_heads.get(i, ()))
    if not most:
        raise ValueError(
            f"config.json: pruned_heads lists every head of layer {i}; state "
            f"'{stack}.{i}.attention' in absent, as its reader should have done"
        )
    qkv = settings.architecture.layer.qkv
    linear = model.linears.get(f"{stack}.{i}.{qkv[0]}")
    if linear is None or settings.architecture.relative_bias is not None:
        return most  # the table of biases has a column for each head
    heads, rest = divmod(linear.packed.spec.shape[0] * len(qkv), 3 * settings.head_size)
    return heads if not rest and 1 <= heads <= most else most


def _intermediate(model: PackedModel, settings: Settings, stack: str, i: int) -> int:
    linear = model.linears.get(f"{stack}.{i}.{settings.architecture.layer.ffn_in}")
    rows = 0 if linear is None else linear.packed.spec.shape[0]
    return rows if 1 <= rows <= settings.intermediate else settings.intermediate
