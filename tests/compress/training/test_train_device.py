"""One GPU, the one that was asked for. Without a GPU: what torch would be told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparse_runtime.compress.training.reading import parse
from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.trainer import training_arguments


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """torch says that it sees two; returns which ones it is told to use."""
    told: list[object] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    return told


@pytest.mark.parametrize(("device", "index"), [("cuda:1", 1), ("cuda:0", 0), ("cuda", 0)])
def test_the_trainer_is_where_the_student_is(device, index, two_gpus, tmp_path: Path) -> None:
    stage = {"name": "tune", "task": "classification", "steps": 1}
    (made,) = parse({"name": "own", "stages": [stage]}).stages
    training = SimpleNamespace(stage=made, total_steps=1, seed=0, device=torch.device(device))
    arguments = training_arguments(training, tmp_path, save_every=None, log_every=1)  # type: ignore[arg-type]
    assert arguments.device == torch.device("cuda", index)
    # Else batches would be spread over both.
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 32
    assert two_gpus[-1] == index


def test_a_gpu_that_is_not_there(two_gpus, checkpoints, labelled, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device 'cuda:2': PyTorch sees 2 CUDA devices"):
        train(checkpoints["bert"], "dense", labelled, tmp_path / "out", device="cuda:2")
    assert not list(tmp_path.iterdir())
