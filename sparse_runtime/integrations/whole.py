"""What a packed model must be for programs that build a network from config.json alone."""

from __future__ import annotations

import re

from torch import Tensor

from ..checkpoints import kind_of
from ..checkpoints.tied import partner_of
from ..store import PackedModel

# Names of the two sizes of a layer in config.json: those of DistilBERT come second.
_SIZES = (("hidden_size", "dim"), ("intermediate_size", "hidden_dim"))
_LAYER = re.compile(r"(?<=\.\d)\.|(?<=\.\d\d)\.")


def check_whole(model: PackedModel, readers: str) -> None:
    """Refuse networks that were cropped: their config.json states the sizes from before.

    Args:
        model: the packed model.
        readers: who is going to read it, for the error.

    Raises:
        ValueError: layers lost heads, neurons or halves.
    """
    if model.absent:
        raise ValueError(f"{min(model.absent)} is absent, which {readers} have no model for")
    if model.head_size is not None:
        raise ValueError(
            f"heads have {model.head_size} features each, not hidden_size / num_attention_heads, "
            f"which {readers} have no model for"
        )
    hidden, inner = (
        next((model.config[key] for key in keys if key in model.config), None) for keys in _SIZES
    )
    layers: dict[str, set[tuple[int, int]]] = {}
    for module, linear in model.linears.items():
        shape = linear.packed.spec.shape
        if kind_of(f"{module}.weight", shape) == "encoder_linear" and hidden and inner:
            layers.setdefault(_LAYER.split(module, maxsplit=1)[0], set()).add(shape)
    for name, shapes in layers.items():
        expected = {(hidden, hidden), (inner, hidden), (hidden, inner)}
        if shapes != expected:
            raise ValueError(
                f"{name}: expected matrices of {sorted(expected)}, as config.json says, got "
                f"{sorted(shapes)}; {readers} have no model for a network whose heads or neurons "
                "were removed: convert with crop='none'"
            )


def untied(model: PackedModel) -> dict[str, Tensor]:
    """Tied tensors by their other names, but for those that transformers ties by itself."""
    return {
        other: model.tensors[kept]
        for other, kept in model.aliases.items()
        if partner_of(other, model.tensors) is None
    }
