"""The ``file`` option: one weights file, inside of the directory and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.tools.inspection import inspect


@pytest.mark.parametrize(
    "name", ["other.safetensors", "sub/dir/other.safetensors", "a.bin", "b.pt"]
)
def test_a_file_is_opened_by_its_ending(
    name: str, write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    directory = write(untied, "safetensors" if name.endswith(".safetensors") else "torch")
    (path,) = (p for p in directory.iterdir() if p.suffix in (".safetensors", ".bin"))
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    path.rename(directory / name)
    checkpoint = open_checkpoint(directory, finalise={"file": name})
    assert checkpoint.layout == name
    assert all(torch.equal(checkpoint.tensors[n], t) for n, t in untied.items())
    assert inspect(directory, finalise={"file": name}).layout == name


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("../secret.bin", "in the checkpoint's directory"),
        ("/etc/passwd.bin", "in the checkpoint's directory"),
        ("a/../../secret.bin", "in the checkpoint's directory"),
        ("..\\secret.bin", "in the checkpoint's directory"),
        ("C:secret.bin", "in the checkpoint's directory"),
        ("a//b.bin", "in the checkpoint's directory"),
        ("", "in the checkpoint's directory"),
        (7, "in the checkpoint's directory"),
        ("args.exe", "ends in .safetensors"),
        ("absent.bin", "no absent.bin, .* weights there: model.safetensors"),
    ],
)
def test_other_places_and_endings_are_refused(
    value: Any, said: str, write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    directory = write(untied)
    shutil.copy(directory / "model.safetensors", directory.parent / "secret.bin")
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(directory, finalise={"file": value})
