"""Packed models as plain Hugging Face checkpoints, zeros in place, for any program."""

from __future__ import annotations

import os

from torch import Tensor

from ..store import PackedModel, load
from ..store.directories import read_path
from .directories import check_new, new_directory, save_tensors
from .whole import check_whole, untied


def export_hugging_face(
    model: str | os.PathLike[str] | PackedModel, out_dir: str | os.PathLike[str]
) -> None:
    """Write a packed model's weights as the floats that they stand for.

    Integers are multiplied by their scales in float32; floats keep their type; pruned weights are
    zeros. What a float checkpoint cannot say is left out: how inputs, outputs and attention are
    quantized. ``convert`` finds the same structure in it again.

    Args:
        model: a packed model, or its directory.
        out_dir: a new or an empty directory.

    Raises:
        FileExistsError: there is something in ``out_dir``.
        ValueError: layers lost heads, neurons or halves, which config.json has no words for.
    """
    target = read_path("out_dir", out_dir).expanduser()
    check_new(target)
    packed = model if isinstance(model, PackedModel) else load(model)
    check_whole(packed, "plain checkpoints")
    tensors: dict[str, Tensor] = dict(packed.tensors)
    for module, linear in packed.linears.items():
        spec = linear.packed.spec
        # dequantize() widens what bfloat16 and float16 hold exactly.
        weight = linear.packed.dequantize()
        tensors[f"{module}.weight"] = (
            weight if spec.values.is_integer else weight.to(spec.values.torch_dtype)
        )
        if linear.bias is not None:
            tensors[f"{module}.bias"] = linear.bias
    tensors |= untied(packed)
    with new_directory(target, packed.config, packed.extra_files) as staging:
        save_tensors(tensors, staging / "model.safetensors")
