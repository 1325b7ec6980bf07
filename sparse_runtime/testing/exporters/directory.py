"""The files that every exported checkpoint has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_directory(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    file: str = "pytorch_model.bin",
) -> None:
    """Write config.json and one pickle of tensors.

    Args:
        directory: made where it is missing.
        config: what config.json holds.
        tensors: by name.
        file: name of the pickle.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, directory / file)


def is_pruned(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is one that unstructured pruning of an encoder touches: a layer's matrix."""
    return tensor.ndim == 2 and ".layer." in name


def fill_zeros(weight: Tensor, generator: torch.Generator) -> Tensor:
    """The weight with noise of its own size where it is zero, as training leaves masked places."""
    noise = torch.randn(weight.shape, generator=generator) * (weight.std() + 0.01)
    return torch.where(weight == 0, noise.to(weight.dtype), weight)
