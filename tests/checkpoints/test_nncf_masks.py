"""NNCF's pruning hooks: masks in the hook store of a model that was not stripped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.testing.exporters.nncf_masks import export_nncf_masks

PARAMETER = "bert.encoder.layer.0.output.dense.weight"
HOOK = f"__nncf_hooks.post_hooks.{PARAMETER.replace('.', ':')}__0"


@pytest.mark.parametrize("logits", [False, True])
def test_masks_of_hooks_are_applied(
    logits: bool,
    pruned: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
    runs_like: Callable[..., None],
) -> None:
    directory = tmp_path / "source"
    export_nncf_masks(directory, model_config, pruned, logits=logits)
    checkpoint = open_checkpoint(directory)
    holds(checkpoint, pruned)
    assert checkpoint.layout.startswith("NNCF pruning in ")
    assert checkpoint.steps == ("weight = weight x mask of its NNCF hook in 12 parameters",)
    runs_like(directory, pruned)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({PARAMETER: None}, "which is missing"),
        ({f"{HOOK}.0.binary_mask": torch.ones(48, 32, dtype=torch.bool)}, r"got bool \[48, 32\]"),
        ({f"{HOOK}.0.binary_mask": torch.ones(32, 48)}, r"expected a bool mask .* got float32"),
        ({f"{HOOK}.1.binary_mask": torch.ones(32, 48, dtype=torch.bool)}, "got several"),
        # A hook of another kind on the same parameter, which nothing here undoes.
        ({f"{HOOK}.1.scale": torch.ones(1)}, "__nncf_hooks"),
        ({f"nncf_module.{PARAMETER}.pre_ops.0.op.binary_mask": torch.ones(1)}, "NNCF"),
    ],
)
def test_what_is_not_understood_is_refused(
    change: dict[str, Tensor | None],
    said: str,
    pruned: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    export_nncf_masks(tmp_path, model_config, pruned)
    tensors = torch.load(tmp_path / "pytorch_model.bin") | change
    torch.save({n: t for n, t in tensors.items() if t is not None}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path)


def test_a_logit_that_is_nan_prunes_nothing(
    pruned: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    export_nncf_masks(tmp_path, model_config, pruned, logits=True)
    tensors = torch.load(tmp_path / "pytorch_model.bin")
    tensors[f"{HOOK}.0.mask"][3, 5] = float("nan")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"0\.mask: expected finite .* nan at \[3, 5\]"):
        checkpoint.tensors[PARAMETER]
