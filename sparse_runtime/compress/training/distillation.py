"""Losses that pull a student to its teacher: pure functions of what both gave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_labels(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Kullback-Leibler divergence of softened distributions, times the squared temperature.

    Its gradient is that of the soft cross entropy. Source: Hinton et al., arXiv 1503.02531; over
    the tokens that are no padding, Zafrir et al., arXiv 2111.05754.

    Args:
        student: logits, float [batch, classes] or [batch, tokens, classes].
        teacher: the same.
        temperature: above 0.
        mask: bool [batch] or [batch, tokens], which rows count; None counts all.

    Returns:
        A scalar, the mean over the rows that count.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: expected a number above 0")
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    classes = student.shape[-1]
    return temperature**2 * F.kl_div(
        F.log_softmax(student.float().reshape(-1, classes) / temperature, dim=1),
        F.log_softmax(teacher.float().reshape(-1, classes) / temperature, dim=1),
        log_target=True,
        reduction="batchmean",
    )


def hidden_states(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Squared error of hidden states, mean over real tokens and features, summed over layers.

    Source: TinyBERT, arXiv 1909.10351, as SparseBERT, arXiv 2104.08682, uses it; there padding
    counts too.

    Args:
        student: float [batch, tokens, hidden] of the embeddings and each layer.
        teacher: the same, of a teacher of equal depth and width.
        mask: bool [batch, tokens], True for real tokens.

    Raises:
        ValueError: the two differ in depth or width.
    """
    _same_shape("hidden", student, teacher)
    errors = [F.mse_loss(s[mask].float(), t[mask].float()) for s, t in _pairs(student, teacher)]
    return torch.stack(errors).sum()


def squarehead(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Squared error of hidden states over the teacher's own mean square, summed over layers.

    Every layer weighs the same, whatever its scale, and so does what the embeddings give, which the
    authors' code leaves out. Source: SquareHead, Kurtic et al., "Sparse
    Fine-tuning for Inference Acceleration of Large Language Models", arXiv 2310.06927.

    Args:
        student: as of :func:`hidden_states`.
        teacher: the same.
        mask: bool [batch, tokens].

    Raises:
        ValueError: the two differ in depth or width.
    """
    _same_shape("squarehead", student, teacher)
    errors = []
    for s, t in _pairs(student, teacher):
        target = t[mask].float()
        errors.append(F.mse_loss(s[mask].float(), target) / target.square().mean().clamp_min(1e-12))
    return torch.stack(errors).sum()


def attention_scores(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Squared error of attention scores before the softmax, summed over layers.

    Source: TinyBERT, arXiv 1909.10351, as SparseBERT, arXiv 2104.08682, uses it; there the mean is
    over padding too.

    Args:
        student: float [batch, heads, tokens, tokens] of each layer.
        teacher: the same.
        mask: bool [batch, tokens]; only pairs of real tokens count.

    Raises:
        ValueError: the two differ in depth or heads.
    """
    _same_shape("attention", student, teacher)
    real = (mask.unsqueeze(1) & mask.unsqueeze(2)).unsqueeze(1).float()
    errors = []
    for s, t in _pairs(student, teacher):
        squares = (s.float() - t.float()).square()
        errors.append((squares * real).sum() / (real.sum() * s.shape[1]))
    return torch.stack(errors).sum()


def sentence_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of sentence vectors [batch, hidden], mean."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=1)).mean()


def similarity_matrices(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of the cosines between the sentences of a batch, without each to itself.

    It sees what a search sees: which sentences are close. Source: relational distillation, Park et
    al., arXiv 1904.05068, with cosines as the relation.

    Args:
        student: sentence vectors, float [batch, hidden].
        teacher: the same; the width may differ.
    """
    count = len(student)
    if count < 2:
        return student.sum() * 0
    s, t = (F.normalize(x.float(), dim=1) for x in (student, teacher))
    error = (s @ s.T - t @ t.T).square()
    return (error.sum() - error.diagonal().sum()) / (count * (count - 1))


def _pairs(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(student, teacher, strict=True))


def _same_shape(term: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    shapes = [[list(x.shape) for x in side] for side in (student, teacher)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            f"distillation.{term}: expected a teacher of the student's depth and width, got "
            f"{len(shapes[1])} of {shapes[1][:1]} against {len(shapes[0])} of {shapes[0][:1]}; set "
            f"distillation.{term} to 0"
        )
