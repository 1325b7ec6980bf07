"""A batch that is cut into parts moves the weights as a whole one does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerCallback

from sparse_runtime.compress.training.reading import parse
from sparse_runtime.compress.training.stage_run import StageRunner
from sparse_runtime.compress.training.trainer import CompressionTrainer, training_arguments
from sparse_runtime.compress.training.workspace import Workspace

# 90 rows in batches of 16: the sixth has 10, in parts of 4, 4 and 2.
STAGE = {
    "name": "tune",
    "task": "classification",
    "steps": 6,
    "learning_rate": 1e-12,  # all steps see the same weights
    "batch_size": 16,
    "dropout": 0.0,
    "clip": 0.0,
}


class Gradients(TrainerCallback):
    """Keeps the gradients of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        named = model.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def gradients(checkpoint, data, folder: Path, accumulation: int) -> list[dict[str, Tensor]]:
    recipe = parse({"name": "test", "stages": [{**STAGE, "accumulation": accumulation}]})
    runner = StageRunner(checkpoint, recipe, data, 0, torch.device("cpu"), {})
    workspace = Workspace(folder / "out", {}, resume=False)
    training, pruner = runner.prepare(recipe.stages[0], workspace)
    arguments = training_arguments(training, folder / "saved", save_every=None, log_every=1)
    trainer = CompressionTrainer(training, pruner, arguments)
    seen = Gradients()
    trainer.add_callback(seen)
    trainer.train()
    return seen.steps


def test_parts_of_fewer_rows_count_less(checkpoints, labelled, tmp_path) -> None:
    whole = gradients(checkpoints["bert"], labelled, tmp_path / "whole", 1)
    parts = gradients(checkpoints["bert"], labelled, tmp_path / "parts", 4)
    assert len(whole) == len(parts) == 6
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys() and len(one) > 30
        for name, gradient in one.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)
