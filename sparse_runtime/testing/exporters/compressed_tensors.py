"""Writes what compressed-tensors saves, in its present formats and in those that it has given up.

Each function takes and gives the tensors of a model by name, and the section of config.json, so
that a model may be quantized first and its integers compressed by their zeros after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
"""Arguments of inputs that get a scale for each token."""

STATIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}
"""Arguments of inputs with a stored scale."""


def export_integers(
    tensors: Mapping[str, Tensor],
    *,
    packed: bool = False,
    bits: int = 8,
    group_size: int = 0,
    symmetric: bool = True,
    inputs: Mapping[str, Any] | None = DYNAMIC,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """int-quantized or pack-quantized weights of the layers' matrices.

    Args:
        tensors: of a float model.
        packed: pack-quantized.
        bits: 4 or 8.
        group_size: inputs under one scale; 0 is a row.
        symmetric: without zero points.
        inputs: ``input_activations``; static ones get a scale of 0.05 and a zero point of 0.

    Returns:
        (tensors, ``quantization_config``)
    """
    written: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_layer_weight(name, tensor):
            written[name] = tensor
            continue
        module = name.removesuffix(".weight")
        parts = _quantize(tensor, bits, group_size or tensor.shape[1], symmetric)
        written |= {f"{module}.{part}": t for part, t in (_pack(parts, bits) if packed else parts)}
        if inputs is not None and not inputs["dynamic"]:
            written[f"{module}.input_scale"] = torch.tensor([0.05])
            written[f"{module}.input_zero_point"] = torch.zeros(1, dtype=torch.int8)
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if group_size else "channel",
        "group_size": group_size or None,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return written, {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "pack-quantized" if packed else "int-quantized",
        "config_groups": {"group_0": group | {"output_activations": None}},
        "ignore": ["re:cls.*"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.0",
    }


def export_bitmask(
    tensors: Mapping[str, Tensor],
    section: Mapping[str, Any] | None = None,
    *,
    two_of_four: bool = False,
    old_names: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """sparse-bitmask, or sparse-24-bitmask, of the layers' matrices, or of all tensors.

    Args:
        tensors: floats, or the int8 weights of :func:`export_integers`.
        section: theirs, or None.
        two_of_four: sparse-24-bitmask; the matrices are 2:4.
        old_names: every tensor is packed under its full name, such as ``X.weight.compressed`` and
            ``X.bias.compressed``, as versions up to 0.8 do; they have no sparse-24-bitmask.

    Returns:
        (tensors, ``quantization_config``)
    """
    written: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not old_names and not is_layer_weight(name, tensor):
            written[name] = tensor
            continue
        prefix = name if old_names else name.removesuffix(".weight")
        parts = _two_of_four(tensor) if two_of_four else _bitmask(tensor)
        written |= {f"{prefix}.{part}": t for part, t in parts.items()}
    sparsity = {
        "format": "sparse-24-bitmask" if two_of_four else "sparse-bitmask",
        "global_sparsity": 50.0,
        "sparsity_structure": "2:4" if two_of_four else "unstructured",
        "targets": ["Linear"],
        "ignore": [],
        "registry_requires_subclass": False,
    }
    plain = {"quant_method": "compressed-tensors"}
    return written, dict(section or plain) | {"sparsity_config": sparsity}


def is_layer_weight(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a matrix of an encoder layer."""
    return tensor.ndim == 2 and ".layer." in name and name.endswith(".weight")


def pack_int32(values: Tensor, bits: int) -> Tensor:
    """int8 [rows, count] -> int32 [rows, ceil(count * bits / 32)], the first value lowest."""
    in_a_word = 32 // bits
    unsigned = values.to(torch.int64) + 2 ** (bits - 1)
    padded = torch.nn.functional.pad(unsigned, (0, -values.shape[1] % in_a_word))
    words = (padded.unflatten(1, (-1, in_a_word)) << torch.arange(0, 32, bits)).sum(-1)
    # The highest bit makes an int32 negative.
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _quantize(
    weight: Tensor, bits: int, group_size: int, symmetric: bool
) -> list[tuple[str, Tensor]]:
    limit = 2 ** (bits - 1)
    groups = weight.unflatten(1, (-1, group_size))
    if symmetric:
        scale = groups.abs().amax(-1, keepdim=True) / (limit - 0.5)
        zero_point = torch.zeros_like(scale)
    else:
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = (high - low) / (2 * limit - 1)
        zero_point = (-limit - low / scale).round().clamp(-limit, limit - 1)
    scale = scale.clamp_min(1e-8)
    values = (groups / scale + zero_point).clamp(-limit, limit - 1).round().flatten(1)
    parts = [("weight", values.to(torch.int8)), ("weight_scale", scale.squeeze(-1))]
    if not symmetric:
        parts.append(("weight_zero_point", zero_point.squeeze(-1).to(torch.int8)))
    return parts


def _pack(parts: list[tuple[str, Tensor]], bits: int) -> list[tuple[str, Tensor]]:
    weight, scale, *zero_point = (tensor for _, tensor in parts)
    packed = [
        ("weight_packed", pack_int32(weight, bits)),
        ("weight_scale", scale),
        ("weight_shape", torch.tensor(weight.shape)),
    ]
    for tensor in zero_point:  # packed along the rows
        packed.append(("weight_zero_point", pack_int32(tensor.T, bits).T.contiguous()))
    return packed


def _bitmask(weight: Tensor) -> dict[str, Tensor]:
    kept = weight != 0
    counts = kept.sum(-1)  # of a vector no axis is left
    return {
        "shape": torch.tensor(weight.shape),
        "compressed": weight[kept],
        "bitmask": _bits(kept),
        "row_offsets": counts.cumsum(0) - counts,
    }


def _two_of_four(weight: Tensor) -> dict[str, Tensor]:
    """The two largest of each four are kept, zeros among them where fewer are left.

    The package's own writer takes the magnitudes in int8, where that of -128 is -128, and so loses
    a -128 beside two zeros.
    """
    groups = weight.unflatten(1, (-1, 4))
    kept = torch.zeros_like(groups, dtype=torch.bool)
    kept.scatter_(2, groups.float().abs().topk(2, dim=2).indices, True)
    kept = kept.flatten(1)
    return {
        "shape": torch.tensor(weight.shape).reshape(2, 1),
        "compressed": weight[kept].reshape(weight.shape[0], -1),
        "bitmask": _bits(kept),
    }


def _bits(kept: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(kept.to(torch.int64), (0, -kept.shape[-1] % 8))
    return (padded.unflatten(-1, (-1, 8)) << torch.arange(8)).sum(-1).to(torch.uint8)
