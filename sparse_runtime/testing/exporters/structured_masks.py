"""Writes weights beside masks of heads and neurons: in buffers (CAP) or files (Kwon et al.)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .directory import write_directory


def export_mask_buffers(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    heads: Tensor,
    neurons: Tensor,
) -> None:
    """Write the masks as top-level buffers of the model.

    Args:
        directory: to write.
        config: of the model.
        tensors: dense.
        heads: float32 [layers, heads].
        neurons: float32 [layers, intermediate size].
    """
    written = {**tensors, "head_mask": heads, "intermediate_mask": neurons}
    write_directory(directory, config, written)


def export_mask_files(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    heads: Tensor,
    neurons: Tensor,
) -> None:
    """Write the masks as files beside the checkpoint; arguments as above."""
    write_directory(directory, config, tensors)
    torch.save(heads, directory / "head_mask.pt")
    torch.save(neurons, directory / "neuron_mask.pt")
