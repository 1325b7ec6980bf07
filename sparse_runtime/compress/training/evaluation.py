"""Accuracy, rank correlation and what else says how good a model is. Always in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...statistics import spearman
from .encoding import EncodedTexts
from .forward import evaluating, run
from .recipe import Task
from .task_loss import task_loss

_BATCH = 64


@dataclass(frozen=True)
class EvaluationTexts:
    """A part of the data to evaluate on.

    Attributes:
        texts: the rows; of an embedding task the first sentences.
        seconds: of an embedding task, the second sentences.
    """

    texts: EncodedTexts
    seconds: EncodedTexts | None = None

    def first(self, rows: int) -> EvaluationTexts:
        """The first rows alone."""
        seconds = None if self.seconds is None else self.seconds.first(rows)
        return EvaluationTexts(self.texts.first(rows), seconds)


def evaluate(model: nn.Module, part: EvaluationTexts, task: Task, pooling: str) -> dict[str, float]:
    """Metrics of a model on a part of the data.

    Args:
        model: of the task.
        part: the rows.
        task: "classification" gives accuracy and loss, "regression" Spearman, Pearson and loss,
            "masked_lm" loss on masked tokens (epoch 0's masks), "embedding" Spearman of cosines.
        pooling: of an embedding task.

    Raises:
        ValueError: labels or second sentences are missing.
    """
    texts = part.texts
    if task == "embedding":
        return _embedding(model, texts, part.seconds, pooling)
    if task == "masked_lm":
        return _masked_lm(model, texts)
    if texts.labels is None:
        raise ValueError(f"evaluate: task {task} needs labels, the data has none")
    logits = predict(model, texts)
    labels = texts.labels.to(logits.device)
    loss = float(task_loss(task, logits, labels))
    if task == "regression":
        values = logits.squeeze(-1)
        return {
            "spearman": _rank_correlation(values, labels),
            "pearson": pearson(values, labels),
            "loss": loss,
        }
    return {"accuracy": float((logits.argmax(1) == labels).double().mean()), "loss": loss}


def pearson(first: Tensor, second: Tensor) -> float:
    """Correlation of two vectors, computed in float64; 0 where one is constant."""
    a, b = (x.double() - x.double().mean() for x in (first, second))
    scale = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return float(a @ b / scale) if float(scale) > 0 else 0.0


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's; 0 where there is no order to compare, so that stages can be told apart by it."""
    found = spearman(first, second)
    return 0.0 if math.isnan(found) else found


def predict(model: nn.Module, texts: EncodedTexts) -> Tensor:
    """Logits [rows, classes] of all texts, float32."""
    device = next(model.parameters()).device
    rows, order = [], []
    with evaluating(model):
        for inputs, indices in texts.in_order(_BATCH, device):
            logits = run(model, inputs).logits
            if logits is None:
                raise ValueError(f"evaluate: {type(model).__name__} has no head")
            rows.append(logits.float())
            order.append(indices)
    logits = torch.cat(rows)
    return torch.empty_like(logits).index_copy_(0, torch.cat(order), logits)


def _masked_lm(model: nn.Module, texts: EncodedTexts) -> dict[str, float]:
    device = next(model.parameters()).device
    loss = right = asked = 0.0
    with evaluating(model):
        for begin in range(0, len(texts), _BATCH):
            rows = range(begin, min(begin + _BATCH, len(texts)))
            batch = texts.batch(list(rows), epoch=0, device=device)
            logits, labels = run(model, batch.inputs).logits, batch.labels
            assert logits is not None and labels is not None
            count = float((labels >= 0).sum())
            loss += float(task_loss("masked_lm", logits, labels)) * count
            right += float((logits.argmax(2) == labels).sum())
            asked += count
    return {"loss": loss / max(asked, 1), "accuracy": right / max(asked, 1)}


def sentence_vectors(model: nn.Module, texts: EncodedTexts, pooling: str) -> Tensor:
    """Unit vectors [rows, hidden] of all texts, float32."""
    device = next(model.parameters()).device
    rows, order = [], []
    with evaluating(model):
        for inputs, indices in texts.in_order(_BATCH, device):
            sentence = run(model, inputs, pooling=pooling).sentence
            assert sentence is not None
            rows.append(F.normalize(sentence.float(), dim=1))
            order.append(indices)
    vectors = torch.cat(rows)
    return torch.empty_like(vectors).index_copy_(0, torch.cat(order), vectors)


def _embedding(
    model: nn.Module, texts: EncodedTexts, seconds: EncodedTexts | None, pooling: str
) -> dict[str, float]:
    if seconds is None or texts.labels is None:
        raise ValueError(
            "evaluate: task embedding needs sentence pairs with scores (columns sentence1, "
            "sentence2, score)"
        )
    first, second = (sentence_vectors(model, part, pooling) for part in (texts, seconds))
    cosines = (first * second).sum(1)
    return {"spearman": _rank_correlation(cosines, texts.labels.to(cosines.device))}
