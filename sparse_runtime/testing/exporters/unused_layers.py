"""Writes the training models of SparseBERT and CoFi, with the layers that inference never calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .directory import write_directory


def export_unused_layer(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: str
) -> None:
    """Write plain weights and one more linear layer.

    Args:
        directory: to write.
        config: of the model; names its hidden size.
        tensors: of the model.
        layer: "fit_dense" or "layer_transformation".
    """
    size = config.get("hidden_size", config.get("dim"))  # DistilBERT's word
    generator = torch.Generator().manual_seed(0)
    unused = {
        f"{layer}.weight": torch.randn(size, size, generator=generator),
        f"{layer}.bias": torch.randn(size, generator=generator),
    }
    write_directory(directory, config, {**tensors, **unused})
