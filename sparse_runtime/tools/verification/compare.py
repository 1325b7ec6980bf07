"""One batch after the other through both models, and what is counted on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .inputs import Batch
from .measures import DriftMeter

if TYPE_CHECKING:
    from .embedding import Embedder

AGREEMENT = {
    "sequence_classification": "label of each text",
    "token_classification": "label of each token",
    "question_answering": "start and end of each answer",
    "masked_lm": "most likely word at each token",
}


class Comparison:
    """Running totals over the batches of one verification.

    Args:
        task: as ``SparseModel.task``.
        problem: ``problem_type`` of a sequence classifier's configuration, or None.
        embedder: makes embeddings of hidden states.
    """

    def __init__(self, task: str, problem: str | None, embedder: Embedder) -> None:
        self.task = task
        self.problem = problem
        self.tokens = 0
        self.output = DriftMeter()
        self.layers: list[DriftMeter] = []
        self.equal = self.predictions = 0
        self.non_finite = self.non_finite_original = 0
        self.embeddings: list[Tensor] = []
        self.originals: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.original_logits: list[Tensor] = []
        self._rows: list[int] = []
        self._embedder = embedder

    def add(self, batch: Batch, packed: Any, original: Any) -> None:
        """Count one batch: the transformers outputs of both models, hidden states included."""
        mask = batch.mask
        self.tokens += int(mask.sum())
        self._rows += batch.rows
        numbers = compared_numbers(self.task, packed, mask)
        originals = compared_numbers(self.task, original, mask)
        self.output.add(numbers, originals)
        self.non_finite += _count_non_finite(numbers)
        self.non_finite_original += _count_non_finite(originals)
        self._add_layers(packed.hidden_states, original.hidden_states, mask)
        self.embeddings.append(self._embedder.embed(packed.hidden_states[-1], mask))
        self.originals.append(self._embedder.embed(original.hidden_states[-1], mask))
        self._add_predictions(packed, original, mask)
        if self.task == "sequence_classification":
            self.logits.append(numbers.float().cpu())
            self.original_logits.append(originals.float().cpu())

    def in_order(self, parts: list[Tensor]) -> Tensor:
        """Rows that were collected batch by batch, in the order of the texts."""
        joined = torch.cat(parts)
        ordered = torch.empty_like(joined)
        ordered[torch.tensor(self._rows)] = joined
        return ordered

    def _add_layers(
        self, packed: tuple[Tensor, ...], original: tuple[Tensor, ...], mask: Tensor
    ) -> None:
        if not self.layers:
            self.layers = [DriftMeter() for _ in original]
        for meter, mine, theirs in zip(self.layers, packed, original, strict=True):
            meter.add(mine[mask], theirs[mask])

    def _add_predictions(self, packed: Any, original: Any, mask: Tensor) -> None:
        mine = predictions(self.task, packed, mask, self.problem)
        theirs = predictions(self.task, original, mask, self.problem)
        if mine is not None and theirs is not None:
            self.equal += int((mine == theirs).sum())
            self.predictions += theirs.numel()


def compared_numbers(task: str, output: Any, mask: Tensor) -> Tensor:
    """The numbers a user reads, without those at padding: [texts or tokens, features]."""
    if task == "base":
        return output.last_hidden_state[mask]
    if task == "question_answering":
        return torch.stack([output.start_logits, output.end_logits], dim=-1)[mask]
    return output.logits if task == "sequence_classification" else output.logits[mask]


def predictions(task: str, output: Any, mask: Tensor, problem: str | None) -> Tensor | None:
    """int64 or bool [n]: what the model decides; None where it decides nothing."""
    if task == "base":
        return None
    if task == "question_answering":
        ends = torch.stack([output.start_logits, output.end_logits])
        return ends.masked_fill(~mask, -torch.inf).argmax(dim=-1).flatten()
    if task == "sequence_classification":
        if problem == "regression":
            return None
        if problem == "multi_label_classification":
            return (output.logits > 0).flatten()
        return output.logits.argmax(dim=-1) if output.logits.shape[1] > 1 else None
    return output.logits[mask].argmax(dim=-1)


def _count_non_finite(numbers: Tensor) -> int:
    return int((~torch.isfinite(numbers)).sum())
