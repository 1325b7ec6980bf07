"""Interrupted and gone on with: the same as never interrupted, to the bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from sparse_runtime.compress.training.reading import parse
from sparse_runtime.compress.training.stage_run import StageRunner
from sparse_runtime.compress.training.trainer import CompressionTrainer, training_arguments
from sparse_runtime.compress.training.workspace import Workspace, is_unfinished

STEPS = 10
# 90 rows in batches of 32, cut in two: 3 steps an epoch, the last with a smaller batch. Step 5 is
# inside the second epoch, step 6 between two.
STAGE = {
    "name": "tune",
    "task": "classification",
    "steps": STEPS,
    "learning_rate": 1e-3,
    "batch_size": 32,
    "accumulation": 2,
    "warmup": 0.2,
    "weight_decay": 0.01,
}
GRADUAL = {
    "method": "magnitude",
    "structure": "unstructured@0.75",
    "schedule": {"begin": 0.1, "end": 0.7, "stop": 0.9, "updates": 4},
}
CASES = {
    "dense": {},
    "magnitude": {"pruning": GRADUAL},
    "rewinding": {"pruning": GRADUAL, "lr_schedule": "rewinding"},
    "masked_lm": {"task": "masked_lm", "pruning": GRADUAL},
    "quantized": {
        "pruning": {"method": "magnitude", "structure": "2:4", "schedule": {"end": 0, "stop": 0}},
        "quantization": {"weights": "int8", "start": 0.2, "freeze": 0.6},
    },
    "structured": {
        "pruning": {"method": "structured", "ratios": [0.25, 0.5], "batch_size": 20},
    },
    "obert": {
        "pruning": {
            **GRADUAL,
            "method": "obert",
            "gradients": 7,
            "batch_size": 16,
        },
    },
    "bf16": {"bf16": True, "pruning": GRADUAL},
    "augmented": {
        "teacher": "model",
        "task": "embedding",
        "distillation": {"embedding": 1.0},
        "augment": {"replace": 0.5, "neighbours": 3, "join": 0.5},
        "pruning": GRADUAL,
    },
}


def run(case, checkpoint, data, folder: Path, stop: int | None, resume: Path | None = None):
    """Trains to the end, or as far as ``stop``; returns the trainer."""
    stage = {**STAGE, **copy.deepcopy(CASES[case])}
    recipe = parse({"name": "test", "pooling": "mean", "stages": [stage]})
    workspace = Workspace(folder / "out", {}, resume=is_unfinished(folder / "out"))
    runner = StageRunner(checkpoint, recipe, data, 0, torch.device("cpu"), {})
    training, pruner = runner.prepare(recipe.stages[0], workspace)
    arguments = training_arguments(training, folder / "saved", save_every=stop, log_every=5)
    trainer = CompressionTrainer(training, pruner, arguments)
    if stop is not None:
        trainer.add_callback(_stop_at(stop))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def _stop_at(step: int):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == step
            return control

    return Stop()


def _equal(first, second, where: str) -> None:
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            _equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            _equal(a, b, f"{where}[{i}]")
    else:
        assert first == second, where


@pytest.mark.parametrize(("case", "stop"), [*((case, 5) for case in CASES), ("magnitude", 6)])
def test_a_resumed_training_equals_an_uninterrupted_one(
    case, stop, checkpoints, labelled, tmp_path
) -> None:
    whole = run(case, checkpoints["bert"], labelled, tmp_path / "whole", None)
    assert whole.state.global_step == STEPS
    first = run(case, checkpoints["bert"], labelled, tmp_path / "parts", stop)
    assert first.state.global_step == stop
    torch.manual_seed(99)  # what a new process would have is not what the old one left
    saved = tmp_path / "parts" / "saved" / f"checkpoint-{stop}"
    second = run(case, checkpoints["bert"], labelled, tmp_path / "parts", None, saved)
    assert second.state.global_step == STEPS
    _equal(whole.model.state_dict(), second.model.state_dict(), "model")
    _equal(whole.optimizer.state_dict(), second.optimizer.state_dict(), "optimizer")
    _equal(whole.lr_scheduler.state_dict(), second.lr_scheduler.state_dict(), "schedule")
    # It has learnt something on the way, or the comparison says little.
    assert not torch.equal(
        next(iter(first.model.state_dict().values())),
        next(iter(whole.model.state_dict().values())),
    )
