"""Files that were never fetched as a whole: the error says to fetch them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint

WEIGHT = "encoder.layer.0.dense.weight"
FILES = {"safetensors": "model.safetensors", "torch": "pytorch_model.bin"}


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    return str(caught.value)


@pytest.mark.parametrize("layout", list(FILES))
def test_a_pointer_of_git_lfs_is_no_file_of_weights(
    layout: str, write: Callable[..., Path]
) -> None:
    directory = write({WEIGHT: torch.ones(2, 2)}, layout)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 438000\n"
    (directory / FILES[layout]).write_text(text)
    assert "run git lfs pull" in refusal(directory)


@pytest.mark.parametrize("end", [0, 1, 20, 100, 0.5, -100, -1])
@pytest.mark.parametrize("layout", ["safetensors", "torch", "old_torch"])
def test_files_that_are_cut_off_are_to_be_downloaded_again(
    layout: str, end: float, write: Callable[..., Path]
) -> None:
    directory = write({WEIGHT: torch.ones(20, 20), "bias": torch.ones(20)}, layout)
    path = directory / FILES[layout.removeprefix("old_")]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) / 2) if end == 0.5 else int(end)])
    message = refusal(directory)
    assert "download it again" in message
    assert "without running code" not in message


@pytest.mark.parametrize("text", ["<!DOCTYPE html><html></html>", '{"error": "not found"}', "PK"])
@pytest.mark.parametrize("layout", list(FILES))
def test_a_page_instead_of_a_file_is_to_be_downloaded_again(
    layout: str, text: str, write: Callable[..., Path]
) -> None:
    directory = write({WEIGHT: torch.ones(2, 2)}, layout)
    (directory / FILES[layout]).write_text(text)
    assert "download it again" in refusal(directory)
