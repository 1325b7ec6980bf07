"""Writes what NNCF's pruned models save before they are stripped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .directory import fill_zeros, is_pruned, write_directory


def export_nncf_masks(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    logits: bool = False,
) -> None:
    """Write weights and the masks of their hooks.

    Args:
        directory: to write.
        config: of the model.
        tensors: of the pruned model; the zeros of its layers' matrices become masks.
        logits: write the logits of the regularised method instead of booleans.
    """
    generator = torch.Generator().manual_seed(0)
    written = dict(tensors)
    for name, tensor in tensors.items():
        if is_pruned(name, tensor):
            hook = f"__nncf_hooks.post_hooks.{name.replace('.', ':')}__0.0"
            kept = tensor != 0
            written[name] = fill_zeros(tensor, generator)
            if logits:
                written[f"{hook}.mask"] = torch.where(kept, 4.6, -4.6)
            else:
                written[f"{hook}.binary_mask"] = kept
    write_directory(directory, config, written)
