"""The loss on the labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .encoding import IGNORED
from .recipe import Task


def task_loss(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of a batch, in float32.

    Args:
        task: "classification" or "masked_lm" (cross entropy), or "regression" (squared error).
        logits: float [batch, classes], [batch, 1] or [batch, tokens, vocabulary].
        labels: int64 [batch] or [batch, tokens], or float [batch].
    """
    logits = logits.float()
    if task == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.float())
    if task == "masked_lm":
        asked = labels != IGNORED
        if not bool(asked.any()):
            return logits.sum() * 0
        return F.cross_entropy(logits[asked], labels[asked])
    return F.cross_entropy(logits, labels)
