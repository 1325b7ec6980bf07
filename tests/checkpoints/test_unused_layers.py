"""Layers that only training used: dropped where they are certain, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import open_checkpoint
from sparse_runtime.testing.exporters.unused_layers import export_unused_layer


@pytest.mark.parametrize("layer", ["fit_dense", "layer_transformation", "mha_layer_transformation"])
def test_the_layer_is_dropped_and_reported(
    layer: str,
    pruned: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
    runs_like: Callable[..., None],
) -> None:
    directory = tmp_path / "source"
    export_unused_layer(directory, model_config, pruned, layer)
    checkpoint = open_checkpoint(directory)
    holds(checkpoint, pruned)
    assert set(checkpoint.dropped) == {f"{layer}.weight", f"{layer}.bias"}
    assert len(checkpoint.steps) == 1
    assert layer in checkpoint.steps[0]
    runs_like(directory, pruned)


@pytest.mark.parametrize(
    "other",
    [
        {"fit_dense.weight": torch.ones(32, 32)},
        {"fit_dense.weight": torch.ones(32), "fit_dense.bias": torch.ones(32)},
        {"head.fit_dense.weight": torch.ones(32, 32), "head.fit_dense.bias": torch.ones(32)},
        {"layer_transformation.0.weight": torch.ones(2, 2), "layer_transformation.0.bias": None},
    ],
)
def test_what_only_resembles_it_stays(
    other: dict[str, Tensor | None], write: Callable[..., Path], pruned: dict[str, Tensor]
) -> None:
    extra = {name: t for name, t in other.items() if t is not None}
    checkpoint = open_checkpoint(write(pruned | extra))
    assert not checkpoint.recognised
    assert set(extra) <= set(checkpoint.tensors)
