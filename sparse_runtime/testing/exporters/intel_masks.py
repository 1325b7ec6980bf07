"""Writes what Intel's Model-Compression-Research saves while it prunes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .directory import fill_zeros, is_pruned, write_directory

RAW_FILE = "raw_pytorch_model.bin"


def export_intel_masks(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    originals: Mapping[str, Tensor] | None = None,
    teacher: Mapping[str, Tensor] | None = None,
    file: str = RAW_FILE,
) -> None:
    """Write pairs of original weights and float masks.

    Args:
        directory: to write.
        config: of the model.
        tensors: of the pruned model; the zeros of its layers' matrices become masks.
        originals: what lies below the masks, by the names of the pruned weights; None puts noise
            below the zeros of every layer's matrix.
        teacher: tensors of a teacher to leave in the file.
        file: name of the weights file.
    """
    generator = torch.Generator().manual_seed(0)
    if originals is None:
        pruned = {name: tensor for name, tensor in tensors.items() if is_pruned(name, tensor)}
        originals = {name: fill_zeros(tensor, generator) for name, tensor in pruned.items()}
    written: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in originals:
            written[f"{name}_original"] = originals[name]
            written[f"{name}_mask"] = (tensor != 0).float()
        else:
            written[name] = tensor
    written |= {f"_teacher.teacher.{name}": t for name, t in (teacher or {}).items()}
    write_directory(directory, config, written, file)
