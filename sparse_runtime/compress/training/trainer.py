"""The trainer of transformers, with a pruner and loss terms: seeded, and resumable to the bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .batches import GroupedBatches, TrainingLoader
from .learning_rates import learning_rates
from .pruners import Pruner
from .stage_training import StageTraining

_MODEL_FILE = "model_state.pt"
_STATE_FILE = "compression_state.pt"


class CompressionTrainer(Trainer):
    """Trains the student of a stage.

    Checkpoints hold the model with all its parametrizations, the optimizer, the schedule, the
    random generators, and the states of the pruner and the loss terms: a run that goes on from one
    equals a run that was never interrupted, bit for bit.

    Args:
        training: the stage.
        pruner: drives sparsity; None trains without.
        arguments: as :func:`training_arguments` gives them.
        progress: show a progress bar; None shows it where stderr is a terminal.
    """

    def __init__(
        self,
        training: StageTraining,
        pruner: Pruner | None,
        arguments: TrainingArguments,
        *,
        progress: bool | None = False,
    ) -> None:
        self.training = training
        self.pruner = pruner
        super().__init__(
            model=training.model,
            args=arguments,
            train_dataset=training.texts,
            callbacks=[PrunerCallback(training, pruner)],
        )
        # Both print to stdout; what is logged stays in the state's history for the report.
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if progress is not False:
            self.add_callback(ProgressBar(progress))
        # The trainer divides losses by the number of a batch's parts, and by nothing else.
        self.model_accepts_loss_kwargs = False
        self._mean_rows = float(training.stage.batch_size // training.stage.accumulation)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches that depend on the seed and the epoch alone."""
        stage = self.training.stage
        batches = GroupedBatches(
            self.training.texts.epoch_lengths,
            stage.batch_size,
            stage.accumulation,
            self.training.seed,
            grouped=stage.length_grouping,
        )
        return TrainingLoader(self.training.texts, batches)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The parts of the next batch; the last of an epoch may have smaller ones."""
        parts, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if parts:
            self._mean_rows = sum(len(part["indices"]) for part in parts) / len(parts)
        return parts, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The stage's loss, by the part's share of the batch's rows, and the pruner's penalty."""
        batch = dict(inputs)
        indices, labels = batch.pop("indices"), batch.pop("labels", None)
        loss = self.training.loss(batch, indices, labels) * (len(indices) / self._mean_rows)
        penalty = self.pruner.penalty() if self.pruner is not None else None
        return loss if penalty is None else loss + penalty

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; weight decay for matrices alone, groups of the pruner's own beside."""
        if self.optimizer is None:
            stage = self.training.stage
            own = self.pruner.parameter_groups(stage.learning_rate) if self.pruner else []
            apart = {id(parameter) for group in own for parameter in group["params"]}
            rest = [
                parameter
                for parameter in self.training.model.parameters()
                if parameter.requires_grad and id(parameter) not in apart
            ]
            groups = [
                {"params": [p for p in rest if p.ndim >= 2], "weight_decay": stage.weight_decay},
                {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
                *own,
            ]
            self.optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, fused=True)
        self.training.optimizer = self.optimizer
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """The stage's schedule."""
        if self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            assert chosen is not None  # the trainer makes it first
            self.lr_scheduler = learning_rates(self.training.stage, chosen, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.training.model.state_dict(), folder / _MODEL_FILE)
        state = {
            "training": self.training.state_dict(),
            "pruner": self.pruner.state_dict() if self.pruner is not None else {},
        }
        torch.save(state, folder / _STATE_FILE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        for name in (_MODEL_FILE, _STATE_FILE):
            if not (folder / name).is_file():
                raise ValueError(f"{folder}: expected a checkpoint of this trainer, {name} missing")
        weights = torch.load(folder / _MODEL_FILE, map_location="cpu", weights_only=True)
        self.training.model.load_state_dict(weights)
        state = torch.load(folder / _STATE_FILE, map_location="cpu", weights_only=True)
        self.training.load_state_dict(state["training"])
        if self.pruner is not None:
            self.pruner.load_state_dict(state["pruner"])


class PrunerCallback(TrainerCallback):
    """Calls a pruner and the loss terms at the moments that :mod:`.pruners.base` lists."""

    def __init__(self, training: StageTraining, pruner: Pruner | None) -> None:
        self.training = training
        self.pruner = pruner

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """An epoch that begins; not one that is gone on with."""
        epoch, inside = divmod(state.global_step, self.training.steps_per_epoch)
        if inside:
            return
        for term in self.training.terms:
            term.begin_epoch(epoch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Masks move, ranges stop to."""
        self.training.begin_step(state.global_step)
        if self.pruner is not None:
            self.pruner.begin_step(state.global_step, self.training.total_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Gradients are there."""
        if self.pruner is not None:
            self.pruner.before_optimizer(state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Weights have moved; the schedule has not."""
        if self.pruner is not None:
            self.pruner.end_step(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Add the parts of the loss and the pruner's numbers to the log."""
        if not state.log_history or "loss" not in (logs or {}):
            return
        extra = {f"loss_{name}": float(part) for name, part in self.training.last_parts.items()}
        state.log_history[-1].update(extra | (self.pruner.metrics() if self.pruner else {}))


class ProgressBar(TrainerCallback):
    """A bar of optimizer steps on stderr, and nothing anywhere else.

    Args:
        shown: None shows it where stderr is a terminal.
    """

    def __init__(self, shown: bool | None) -> None:
        self.shown = shown
        self.bar: tqdm[Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The bar opens, at 0 or where a training goes on."""
        hidden = None if self.shown is None else not self.shown
        total, done = state.max_steps, state.global_step
        self.bar = tqdm(total=total, initial=done, desc="steps", disable=hidden)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A step."""
        if self.bar is not None:
            self.bar.update()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The bar closes."""
        if self.bar is not None:
            self.bar.close()


def training_arguments(
    training: StageTraining, folder: Path, *, save_every: int | None, log_every: int
) -> TrainingArguments:
    """Arguments of transformers for a stage.

    Args:
        training: the stage.
        folder: for checkpoints.
        save_every: steps between checkpoints; None saves none.
        log_every: steps between entries of the log.
    """
    stage = training.stage
    # Another value makes transformers look for loggers that are installed.
    reporting: Mapping[str, Any] = {"report_to": "none", "disable_tqdm": True}
    arguments = TrainingArguments(
        output_dir=os.fspath(folder),
        max_steps=training.total_steps,
        per_device_train_batch_size=stage.batch_size // stage.accumulation,
        gradient_accumulation_steps=stage.accumulation,
        learning_rate=stage.learning_rate,
        max_grad_norm=stage.clip,
        save_strategy="no" if save_every is None else "steps",
        save_steps=save_every or 500,
        save_total_limit=2,
        logging_steps=log_every,
        # A loss that is not finite is shown as it is.
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        use_cpu=training.device.type == "cpu",
        seed=training.seed,
        **reporting,
    )
    keep_to(arguments, training.device)
    return arguments


def keep_to(arguments: TrainingArguments, device: torch.device) -> None:
    """Train on one GPU, the one that the student is on.

    transformers takes cuda:0 whatever was chosen, and spreads batches over every GPU that there is.
    """
    if device.type != "cuda":
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    # What its cached property holds, and the GPU that "cuda" without a number means.
    vars(arguments)["_setup_devices"] = torch.device("cuda", index)
    arguments._n_gpu = 1
    torch.cuda.set_device(index)
