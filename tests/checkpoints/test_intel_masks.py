"""Intel's Model-Compression-Research: raw checkpoints of "Prune Once for All"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.testing.exporters.directory import write_directory
from sparse_runtime.testing.exporters.intel_masks import RAW_FILE, export_intel_masks

RAW = {"file": RAW_FILE}
LAYER = "bert.encoder.layer.0.output.dense"


def test_a_raw_file_opens_masked_and_without_its_teacher(
    pruned: dict[str, Tensor],
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
    runs_like: Callable[..., None],
) -> None:
    directory = tmp_path / "raw"
    export_intel_masks(directory, model_config, pruned, teacher=untied)
    # Pickles that are never loaded: they would raise.
    (directory / "args.bin").write_bytes(b"\x80\x04garbage")
    (directory / "pruning_config.json").write_text("{")
    checkpoint = open_checkpoint(directory, finalise=RAW)
    holds(checkpoint, pruned)
    assert checkpoint.layout == f"Intel Model-Compression-Research in {RAW_FILE}"
    assert checkpoint.steps == (
        f"dropped {len(untied)} tensors of the teacher",
        "weight = weight_original x weight_mask in 12 modules",
    )
    assert len(checkpoint.dropped) == len(untied)
    assert all(name.startswith("_teacher.teacher.") for name in checkpoint.dropped)
    runs_like(directory, pruned, RAW)


def test_pairs_in_the_usual_file_need_no_option(
    pruned: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
) -> None:
    export_intel_masks(tmp_path, model_config, pruned, file="pytorch_model.bin")
    holds(open_checkpoint(tmp_path), pruned)


def test_the_named_file_is_taken_where_both_are_there(
    pruned: dict[str, Tensor],
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
    holds: Callable[..., None],
) -> None:
    write_directory(tmp_path, model_config, untied)
    export_intel_masks(tmp_path, model_config, pruned)
    holds(open_checkpoint(tmp_path), untied)
    holds(open_checkpoint(tmp_path, finalise=RAW), pruned)


def test_without_the_option_the_error_names_it(
    pruned: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    export_intel_masks(tmp_path, model_config, pruned)
    with pytest.raises(CheckpointError, match=rf"{RAW_FILE}; name .* --finalise file={RAW_FILE}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_mask": None}, "one alone"),
        ({"weight_original": None}, "one alone"),
        ({"weight_mask": torch.full((32, 48), 0.5)}, "mask of 0 and 1"),
        ({"weight_mask": torch.ones(48, 32)}, "[32, 48], got [48, 32]"),
        ({"weight": torch.ones(32, 48)}, "both plain and in the layout"),
    ],
)
def test_what_contradicts_itself_is_refused(
    change: dict[str, Tensor | None],
    said: str,
    pruned: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    export_intel_masks(tmp_path, model_config, pruned)
    tensors = torch.load(tmp_path / RAW_FILE)
    tensors |= {f"{LAYER}.{part}": t for part, t in change.items()}
    torch.save({n: t for n, t in tensors.items() if t is not None}, tmp_path / RAW_FILE)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path, finalise=RAW).tensors[f"{LAYER}.weight"]
    assert said in str(caught.value)
    assert LAYER in str(caught.value)
