"""Distillation as terms of the loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .context import Batch, LossTerm
from .contrastive_term import ContrastiveTerm
from .distillation import (
    attention_scores,
    hidden_states,
    sentence_distance,
    similarity_matrices,
    soft_labels,
    squarehead,
)
from .forward import Outputs
from .recipe import Task
from .sections import Distillation
from .task_loss import task_loss


class TeacherTerm(LossTerm):
    """One weighted comparison with the teacher.

    Args:
        name: of the term, as in the recipe.
        weight: what it is multiplied with.
        compare: (student, teacher) -> a scalar.
        hidden: needs hidden states.
        attention: needs attention scores.
    """

    needs_teacher = True

    def __init__(
        self,
        name: str,
        weight: float,
        compare: Callable[[Outputs, Outputs], Tensor],
        *,
        hidden: bool = False,
        attention: bool = False,
    ) -> None:
        self.name = name
        self.weight = weight
        self.compare = compare
        self.needs_hidden = hidden
        self.needs_attention = attention

    def loss(self, batch: Batch) -> Tensor:
        """The weighted comparison."""
        assert batch.teacher is not None  # needs_teacher
        return self.weight * self.compare(batch.student, batch.teacher)


def distillation_terms(settings: Distillation, task: Task) -> list[LossTerm]:
    """The terms that a recipe's section gives a weight.

    Raises:
        ValueError: a term that the task has nothing to compare for.
    """
    if task == "embedding" and settings.logits:
        raise ValueError("distillation.logits: task embedding has no logits; use embedding")
    if task != "embedding" and (settings.embedding or settings.similarity):
        raise ValueError(
            f"distillation.embedding and .similarity compare sentence vectors, which task {task} "
            "does not make; use logits, hidden or squarehead"
        )
    made = [
        TeacherTerm("logits", settings.logits, _logits(task, settings.temperature)),
        TeacherTerm("hidden", settings.hidden, _hidden, hidden=True),
        TeacherTerm("squarehead", settings.squarehead, _squarehead, hidden=True),
        TeacherTerm("attention", settings.attention, _attention, attention=True),
        TeacherTerm("embedding", settings.embedding, _embedding),
        TeacherTerm("similarity", settings.similarity, _similarity),
    ]
    terms: list[LossTerm] = [term for term in made if term.weight]
    banks = settings.contrastive
    if banks is not None and (banks.instance_weight or banks.label_weight):
        terms.append(ContrastiveTerm(banks))
    return terms


def _logits(task: Task, temperature: float) -> Callable[[Outputs, Outputs], Tensor]:
    def compare(student: Outputs, teacher: Outputs) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        if task == "regression":
            return task_loss(task, student.logits, teacher.logits.squeeze(-1))
        mask = student.attention_mask if student.logits.ndim == 3 else None
        return soft_labels(student.logits, teacher.logits, temperature, mask)

    return compare


def _hidden(student: Outputs, teacher: Outputs) -> Tensor:
    return hidden_states(student.hidden_states, teacher.hidden_states, student.attention_mask)


def _squarehead(student: Outputs, teacher: Outputs) -> Tensor:
    return squarehead(student.hidden_states, teacher.hidden_states, student.attention_mask)


def _attention(student: Outputs, teacher: Outputs) -> Tensor:
    return attention_scores(
        student.attention_scores, teacher.attention_scores, student.attention_mask
    )


def _embedding(student: Outputs, teacher: Outputs) -> Tensor:
    assert student.sentence is not None and teacher.sentence is not None
    return sentence_distance(student.sentence, teacher.sentence)


def _similarity(student: Outputs, teacher: Outputs) -> Tensor:
    assert student.sentence is not None and teacher.sentence is not None
    return similarity_matrices(student.sentence, teacher.sentence)
