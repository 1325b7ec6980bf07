"""A packed layer in a state dict: its tensors by the store's names, its spec as JSON bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..formats import FORMATS, PackedWeight, check_bias, from_tensors
from ..spec import LinearSpec

SPEC_KEY = "_extra_state"
MAX_SPEC_BYTES = 4096


def encode_spec(spec: LinearSpec) -> Tensor:
    """JSON as uint8 [bytes]: a tensor, so that safetensors and ``weights_only`` loading take it."""
    text = json.dumps(spec.to_dict(), sort_keys=True)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def decode_spec(data: Any) -> LinearSpec:
    """Undo :func:`encode_spec`; anything else raises ValueError."""
    if not isinstance(data, Tensor) or data.dtype != torch.uint8 or data.ndim != 1:
        raise ValueError(f"{SPEC_KEY}: expected the layer's spec as uint8 [bytes]")
    if data.numel() > MAX_SPEC_BYTES:
        raise ValueError(f"{SPEC_KEY}: {data.numel()} bytes, expected at most {MAX_SPEC_BYTES}")
    try:
        parsed = json.loads(bytes(data.tolist()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{SPEC_KEY}: not JSON ({error})") from None
    return LinearSpec.from_dict(parsed)


@dataclass
class ReadState:
    """One layer's part of a state dict, read and checked.

    Attributes:
        packed: the weight, checked, or None.
        bias: float [out], checked, or None; the layer's own where the state dict lacks it.
        missing: names that the layer needs and the state dict lacks.
        unexpected: names that the layer has no place for.
        errors: what is wrong with entries that are there.
    """

    packed: PackedWeight | None = None
    bias: Tensor | None = None
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether the layer may take it.

        A missing spec or bias is the layer's own, and entries without a place harm nothing:
        ``load_state_dict`` decides by its ``strict`` whether they are errors.
        """
        own = {SPEC_KEY} if self.bias is None else {SPEC_KEY, "bias"}
        return not (self.errors or set(self.missing) - own)


def read_state(entries: Mapping[str, Any], own: LinearSpec, own_bias: Tensor | None) -> ReadState:
    """Read and check everything, changing nothing.

    Args:
        entries: state dict entries by their name in the layer.
        own: spec of the layer that loads. The state dict's spec may name another structure or
            value type, but not another shape.
        own_bias: that layer's bias, or None where it has none.
    """
    state = ReadState()
    state.missing += [SPEC_KEY] if SPEC_KEY not in entries else []
    try:
        spec = decode_spec(entries[SPEC_KEY]) if SPEC_KEY in entries else own
        if spec.shape != own.shape:
            raise ValueError(
                f"weight: expected shape {list(own.shape)} (out_features, in_features), got "
                f"{list(spec.shape)}"
            )
        names = FORMATS[spec.structure.kind].tensor_names(spec)
        state.missing += [name for name in names if name not in entries]
        known = {*names, SPEC_KEY} | ({"bias"} if own_bias is not None else set())
        state.unexpected += sorted(set(entries) - known)
        tensors = {name: _loaded(name, entries[name]) for name in names if name in entries}
        if len(tensors) == len(names):
            state.packed = from_tensors(spec, tensors)
        if own_bias is not None and "bias" not in entries:
            state.missing.append("bias")
            state.bias = None if own_bias.is_meta else own_bias.detach()
        elif own_bias is not None:
            state.bias = _loaded("bias", entries["bias"])
            check_bias("bias", state.bias, own.shape[0])
    except ValueError as error:
        state.errors.append(str(error))
    return state


def _loaded(name: str, tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.is_meta:
        got = "one on the meta device" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: expected a tensor with values, got {got}")
    return tensor.detach()
