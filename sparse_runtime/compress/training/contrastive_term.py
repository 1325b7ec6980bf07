"""The contrastive losses as a term of a stage's loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from .context import Batch, LossTerm, Training
from .contrastive import ContrastiveBanks, ContrastiveSettings
from .forward import POOLINGS
from .schema import require


@dataclass(frozen=True)
class ContrastiveSection(ContrastiveSettings):
    """Section ``distillation.contrastive`` of a recipe.

    Attributes:
        pooling: how a text becomes one vector: "pooler" (the paper's, behind the tanh), "mean" or
            "cls".
        snapshot_epochs: epochs from one snapshot to the next, and before the first.
    """

    pooling: str = "mean"
    snapshot_epochs: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        poolings = f"one of {', '.join(POOLINGS)}"
        require(
            pooling=(self.pooling, self.pooling in POOLINGS, poolings),
            snapshot_epochs=(self.snapshot_epochs, self.snapshot_epochs >= 1, "1 or more"),
        )


class ContrastiveTerm(LossTerm):
    """Instance and label terms against the banks of pretrained, snapshot and finetuned vectors.

    The pretrained bank is the student's as the stage begins, the finetuned one the teacher's.
    """

    name = "contrastive"

    def __init__(self, section: ContrastiveSection) -> None:
        self.section = section
        self.needs_hidden = section.pooling != "pooler"
        self.banks: ContrastiveBanks

    def attach(self, training: Training) -> None:
        """Encode all examples by student and teacher.

        Raises:
            ValueError: the finetuned bank is wanted and there is no teacher.
        """
        self._training = training
        labels = training.labels if self.section.label_weight else None
        if labels is not None and labels.is_floating_point():
            labels = None
        self.banks = ContrastiveBanks(
            training.examples, self.section, labels=labels, seed=training.seed
        )
        if "pretrained" in self.section.banks:
            self.banks.fill("pretrained", training.encode(training.model, self.section.pooling))
        if "finetuned" in self.section.banks:
            if training.teacher is None:
                raise ValueError(
                    "contrastive.banks: 'finetuned' holds the teacher's vectors, and this stage "
                    "has no teacher; give one, or leave the bank out"
                )
            self.banks.fill("finetuned", training.encode(training.teacher, self.section.pooling))

    def begin_epoch(self, epoch: int) -> None:
        """Take a snapshot of the student where it is time."""
        # As training begins, the student's vectors are those of the pretrained bank.
        due = epoch > 0 and epoch % self.section.snapshot_epochs == 0
        if due and "snapshots" in self.section.banks:
            model = self._training.model
            self.banks.fill("snapshots", self._training.encode(model, self.section.pooling))

    def loss(self, batch: Batch) -> Tensor:
        """The weighted terms of all banks."""
        pooled = batch.student.pooled(self.section.pooling).float()
        return self.banks.loss(normalize(pooled, dim=-1), batch.indices)

    def state_dict(self) -> dict[str, object]:
        """The banks."""
        return self.banks.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the banks back."""
        self.banks.load_state_dict(dict(state))
