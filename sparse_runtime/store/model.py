"""A packed model in memory."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..formats import PackedWeight
from ..spec import QuantizedAttention

SECTION = "sparse_runtime"
"""Key of config.json under which a packed model describes itself."""

# Names are printed, matched and joined; none of what they may hold means anything to a shell, a
# file system or a pattern.
NAME = re.compile(r"(?!__metadata__$)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
MAX_NAME = 512

# The names of safetensors for the element types a packed model may hold.
TENSOR_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass
class PackedLinear:
    """One packed linear layer: a weight [out, in] and a float bias [out] or None."""

    packed: PackedWeight
    bias: Tensor | None = None


@dataclass
class PackedModel:
    """Everything a packed model's directory holds.

    Attributes:
        config: the fields of config.json, without the section of this project.
        linears: packed layers by module name, such as "encoder.layer.0.output.dense".
        tensors: all other tensors by name, such as "embeddings.word_embeddings.weight".
        aliases: tied weights, another tensor's name -> its name in ``tensors``.
        provenance: JSON: the source, and what was pruned and quantized and how.
        extra_files: a directory whose tokenizer and sentence-transformers files travel along.
        attention: quantized self-attention by the layer's name, such as "bert.encoder.layer.0";
            layers that are not named multiply floats.
        absent: sublayers that the network lacks, as "<layer>.attention" or "<layer>.ffn", such as
            "encoder.layer.3.attention". A sublayer is never taken for absent because its tensors
            are missing.
        head_size: features of an attention head; None is hidden size over heads of ``config``.
    """

    config: dict[str, Any]
    linears: dict[str, PackedLinear]
    tensors: dict[str, Tensor]
    aliases: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    extra_files: Path | None = None
    attention: dict[str, QuantizedAttention] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    head_size: int | None = None


def packed_names(model: PackedModel) -> dict[str, Tensor]:
    """The tensors of the packed weights, by the names they have in the file."""
    return {
        f"{module}.{part}": tensor
        for module, linear in sorted(model.linears.items())
        for part, tensor in linear.packed.tensors().items()
    }


def plain_names(model: PackedModel) -> dict[str, Tensor]:
    """All other stored tensors, the packed layers' biases among them, by their names."""
    biases = {f"{m}.bias": linear.bias for m, linear in sorted(model.linears.items())}
    return {name: bias for name, bias in biases.items() if bias is not None} | model.tensors


def check_shape_of_layers(absent: Any, head_size: Any) -> None:
    """Raise ValueError unless these are distinct names of sublayers, and a size or None."""
    if not isinstance(absent, (list, tuple)) or not all(_is_sublayer(name) for name in absent):
        raise ValueError(
            "absent: expected a list of names such as 'encoder.layer.3.attention' and "
            f"'encoder.layer.7.ffn', got {str(absent)[:80]!r}"
        )
    if len(set(absent)) != len(absent):
        raise ValueError("absent: expected each name once, got one twice")
    if head_size is not None and (type(head_size) is not int or head_size < 1):
        raise ValueError(f"head_size: expected an integer from 1 or none, got {head_size!r}")


def _is_sublayer(name: Any) -> bool:
    return (
        isinstance(name, str)
        and len(name) <= MAX_NAME
        and NAME.fullmatch(name) is not None
        and name.endswith((".attention", ".ffn"))
    )


def check_names(layers: set[str], plain: set[str], aliases: dict[str, str]) -> None:
    """Raise ValueError unless every name is well formed and means one tensor.

    Args:
        layers: module names of the packed layers.
        plain: names of the tensors beside the packed weights, biases included.
        aliases: tied name -> stored name.
    """
    for name in sorted(layers | plain | aliases.keys()):
        if len(name) > MAX_NAME or not NAME.fullmatch(name):
            raise ValueError(
                f"name {name[:80]!r}: expected parts of letters, digits, _ and - joined by dots, "
                f"at most {MAX_NAME} characters"
            )
    for name in sorted(plain | aliases.keys()):
        module, _, part = name.rpartition(".")
        if module in layers and (part != "bias" or name in aliases):
            raise ValueError(f"{name}: layer {module!r} is packed, so it has no other {part!r}")
    for name, stored in sorted(aliases.items()):
        if name in plain:
            raise ValueError(f"tied {name}: expected a name that is not stored, got a stored one")
        if stored not in plain:
            raise ValueError(
                f"tied {name}: expected the name of a stored tensor, got {str(stored)[:80]!r}"
            )


def check_attention(attention: Iterable[str], layers: set[str]) -> None:
    """Raise ValueError unless each quantized attention belongs to a layer with packed weights.

    Args:
        attention: names of the layers whose attention is quantized.
        layers: module names of the packed layers.
    """
    ordered = sorted(layers)
    for name in sorted(attention):
        at = bisect_left(ordered, f"{name}.")
        if at == len(ordered) or not ordered[at].startswith(f"{name}."):
            raise ValueError(
                f"attention {name[:80]!r}: expected the name in front of packed layers, such as "
                "'encoder.layer.0', got one that none has"
            )
