"""What a pruner or a loss term is given of the training that it takes part in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from .forward import Outputs


class Training(Protocol):
    """The running training, as pruners and loss terms see it.

    Attributes:
        model: the student.
        teacher: the teacher in eval mode, or None.
        linears: name -> the student's encoder linears that the stage compresses, natural order.
        total_steps: optimizer steps of the stage.
        steps_per_epoch: optimizer steps of one epoch.
        examples: training examples; batches name theirs by an index below it.
        labels: int64 or float [examples], None where there are none. Always in index order.
        seed: of the whole run; draw from generators of your own that are seeded from it.
        learning_rate: of the current step, of the first parameter group.
    """

    model: nn.Module
    teacher: nn.Module | None
    linears: Mapping[str, nn.Linear]
    total_steps: int
    steps_per_epoch: int
    examples: int
    labels: Tensor | None
    seed: int

    @property
    def learning_rate(self) -> float:
        """Learning rate of the current step, of the first parameter group."""
        ...

    def encode(self, model: nn.Module, how: str) -> Tensor:
        """Pooled vectors [examples, hidden] of every training text, in eval mode, no gradients.

        The state of the global random generators is left as it was.
        """
        ...

    def gradients(
        self, batches: int, batch_size: int, seed: int, *, labels_alone: bool = False
    ) -> Iterator[None]:
        """Stops ``batches`` times with the gradients of one batch's loss in ``.grad``.

        Rows are shuffled by ``seed`` and taken once each, the last batch of such a pass being
        smaller where they do not divide; where more batches are asked for, they are shuffled anew.
        The loss is that of the stage (task and distillation, no penalty), or with ``labels_alone``
        that of the labels, where there are any; dropout off. Gradients are cleared before each
        batch and after the last. Batches of size 1 give per-sample gradients. Call it between steps
        only: in ``attach`` or ``begin_step``.
        """
        ...


@dataclass(frozen=True)
class Batch:
    """One training batch and what student and teacher said of it.

    Attributes:
        inputs: what the models were given, without labels.
        indices: int64 [batch], which training examples these are.
        labels: int64 or float [batch], of a masked LM [batch, tokens]; None where there are none.
        student: with gradients.
        teacher: without; None where the stage has no teacher, or no term needs its pass.
    """

    inputs: Mapping[str, Tensor]
    indices: Tensor
    labels: Tensor | None
    student: Outputs
    teacher: Outputs | None


class LossTerm:
    """A part of the loss. Contrastive terms and distillation are such.

    Class attributes say what must be computed for it:
        needs_hidden: hidden states of student and teacher.
        needs_attention: attention scores of student and teacher.
        needs_teacher: a forward pass of the teacher for each batch.
    """

    name: str = "term"
    needs_hidden = False
    needs_attention = False
    needs_teacher = False

    def attach(self, training: Training) -> None:
        """Called once, before the first step and before a saved state is loaded."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of each epoch, from 0; not again when resumed inside one."""

    def loss(self, batch: Batch) -> Tensor:
        """The weighted term, a scalar."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, object]:
        """All that exact resumption needs: tensors, numbers, strings, lists and dicts of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take back a state; called after ``attach``."""
