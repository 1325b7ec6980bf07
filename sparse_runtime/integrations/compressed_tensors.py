"""Packed models in the format of compressed-tensors, for the programs that read it.

Format: ``int-quantized`` of compressed-tensors 0.20, and ``naive-quantized``, the same tensors, for
layers with float inputs. The package itself is not needed.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..spec import ActivationSpec, LinearSpec
from ..store import PackedLinear, PackedModel, load
from ..store.directories import read_path
from .directories import check_new, new_directory, save_tensors
from .whole import check_whole, untied

_DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
_BITS = {"int4": 4, "int8": 8}


def export_compressed_tensors(
    model: str | os.PathLike[str] | PackedModel, out_dir: str | os.PathLike[str]
) -> None:
    """Write a packed model as a checkpoint of compressed-tensors.

    Integers, scales and zero points are written as they are; positions that are not stored become
    zeros, so that a sparse model loses its small size and none of its values. Layers packed in
    floats stay floats. Static uint8 inputs become int8 with a zero point that is 128 less.

    Args:
        model: a packed model, or its directory.
        out_dir: a new or an empty directory.

    Raises:
        FileExistsError: there is something in ``out_dir``.
        ValueError: the model has what the format cannot state; the message names the layer.
    """
    target = read_path("out_dir", out_dir).expanduser()
    check_new(target)
    packed = model if isinstance(model, PackedModel) else load(model)
    if packed.attention:
        raise ValueError(
            f"{min(packed.attention)}: its attention is quantized, which compressed-tensors has no "
            "place for"
        )
    check_whole(packed, "programs that read compressed-tensors")
    tensors: dict[str, Tensor] = dict(packed.tensors)
    groups: dict[str, dict[str, Any]] = {}
    for module, linear in packed.linears.items():
        try:
            stored, scheme = _layer(linear)
        except ValueError as error:
            raise ValueError(f"{module}: {error}") from error
        tensors |= {f"{module}.{part}": tensor for part, tensor in stored.items()}
        if scheme is not None:
            key = json.dumps(scheme, sort_keys=True)
            groups.setdefault(key, {"targets": [], **scheme})["targets"].append(module)
    tensors |= untied(packed)
    config = packed.config | {"quantization_config": _section(list(groups.values()))}
    with new_directory(target, config, packed.extra_files) as staging:
        save_tensors(tensors, staging / "model.safetensors")


def _layer(linear: PackedLinear) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """(tensors of a module, its scheme); None leaves it in floats."""
    packed = linear.packed
    spec = packed.spec
    stored = {"weight": packed.unpack()}
    if linear.bias is not None:
        stored["bias"] = linear.bias
    if not spec.values.is_integer:
        return stored, None
    weights = _weights(spec)
    scales, zero_points = packed.scale_columns()
    if weights["strategy"] == "tensor":
        scales, zero_points = scales[0], zero_points[0]
    stored["weight_scale"] = scales
    if spec.values.zero_points:
        stored["weight_zero_point"] = zero_points.to(torch.int8)
    sides = {}
    for side, activations in (("input", spec.activations), ("output", spec.outputs)):
        sides[f"{side}_activations"] = _arguments(activations, side)
        if activations is not None and activations.scheme == "static":
            shift = 128 if activations.dtype == "uint8" else 0
            zero_point = activations.zero_point - shift
            stored[f"{side}_scale"] = torch.tensor([activations.scale])
            stored[f"{side}_zero_point"] = torch.tensor([zero_point], dtype=torch.int8)
    written = "naive-quantized" if spec.activations is None else "int-quantized"
    return stored, {"weights": weights, "format": written, **sides}


def _weights(spec: LinearSpec) -> dict[str, Any]:
    values = spec.values
    length = values.group_cols
    if length and spec.shape[1] % length:
        raise ValueError(
            f"groups of {length} inputs do not divide {spec.shape[1]}, and compressed-tensors has "
            "only whole groups"
        )
    strategy = {"tensor": "tensor", "group": "group"}.get(values.granularity, "channel")
    return {
        "num_bits": _BITS[values.dtype],
        "type": "int",
        "symmetric": not values.zero_points,
        "strategy": strategy,
        "group_size": length or None,
        "dynamic": False,
    }


def _arguments(activations: ActivationSpec | None, side: str) -> dict[str, Any] | None:
    if activations is None:
        return None
    if activations.scheme == "static":
        middle = 128 if activations.dtype == "uint8" else 0
        symmetric = activations.zero_point == middle
        return {**_DYNAMIC, "symmetric": symmetric, "strategy": "tensor", "dynamic": False}
    if activations.dtype == "int8" and not activations.narrow_range:
        return dict(_DYNAMIC)
    kind = "uint8 with zero points" if activations.dtype == "uint8" else "int8 over -127..127"
    raise ValueError(
        f"its {side} is quantized to dynamic {kind}, and compressed-tensors has int8 over "
        "-128..127 with a scale of max / 127.5; pack with static or with float activations "
        "(activations='none')"
    )


def _section(groups: list[dict[str, Any]]) -> dict[str, Any]:
    formats = {group["format"] for group in groups}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": [],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": f"sparse-runtime {__version__}",
    }
