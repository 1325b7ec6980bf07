"""The contrastive term in a training: which banks it fills and when, its loss, what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from sparse_runtime.compress.training.context import Batch
from sparse_runtime.compress.training.contrastive_term import ContrastiveSection, ContrastiveTerm
from sparse_runtime.compress.training.forward import run
from sparse_runtime.compress.training.schema import build
from sparse_runtime.compress.training.sections import Distillation
from sparse_runtime.compress.training.terms import distillation_terms


@pytest.fixture
def training(drive: Callable[..., Any]) -> Any:
    """16 texts, student and a teacher that differs."""
    made = drive({"method": "lock"}).training
    made.teacher = copy.deepcopy(made.model)
    with torch.no_grad():
        for parameter in made.teacher.parameters():
            parameter.mul_(1.1)
    return made


def contrastive_term(section: dict[str, Any]) -> ContrastiveTerm:
    return ContrastiveTerm(build(ContrastiveSection, section, "contrastive"))


def batch(training: Any, model: nn.Module, rows: torch.Tensor) -> Batch:
    tokens = training.tokens[rows]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return Batch(inputs, rows, training.labels[rows], run(model, inputs, hidden=True), None)


def test_banks_are_student_and_teacher_before_training(training: Any) -> None:
    term = contrastive_term({"snapshot_epochs": 2})
    term.attach(training)
    vectors = term.state_dict()["vectors"]
    for name, model in (("pretrained", training.model), ("finetuned", training.teacher)):
        expected = normalize(training.encode(model, "mean"), dim=-1)
        torch.testing.assert_close(vectors[name][0].float(), expected, rtol=0, atol=1e-3)
    assert not torch.equal(vectors["pretrained"][0], vectors["finetuned"][0])
    taken = []
    for epoch in range(5):
        term.begin_epoch(epoch)
        taken.append(term.banks.snapshots)
    assert taken == [0, 0, 1, 1, 2]


def test_loss_is_that_of_the_banks_and_has_gradients(training: Any) -> None:
    rows = torch.tensor([2, 5, 11])
    section = {"extra_candidates": 4, "banks": ["finetuned"]}
    term, again = contrastive_term(section), contrastive_term(section)
    term.attach(training)
    again.attach(training)
    one = batch(training, training.model, rows)
    pooled = normalize(one.student.pooled("mean"), dim=-1)
    loss = term.loss(one)
    torch.testing.assert_close(loss, again.banks.loss(pooled, rows))
    loss.backward()
    query = next(iter(training.linears.values()))
    assert query.parametrizations.weight.original.grad.abs().sum() > 0


def test_a_recipe_gets_the_term(training: Any) -> None:
    section = ContrastiveSection(label_weight=0, instance_weight=0.5, banks=("pretrained",))
    (term,) = distillation_terms(Distillation(contrastive=section), "embedding")
    assert term.name == "contrastive" and term.needs_hidden and not term.needs_teacher
    training.labels, training.teacher = None, None
    term.attach(training)
    assert term.loss(batch_without_labels(training)).item() > 0


def batch_without_labels(training: Any) -> Batch:
    rows = torch.arange(4)
    tokens = training.tokens[rows]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return Batch(inputs, rows, None, run(training.model, inputs, hidden=True), None)


def test_refusals(training: Any) -> None:
    with pytest.raises(ValueError, match="instance_weight"):
        contrastive_term({"instanceweight": 1})
    with pytest.raises(ValueError, match="snapshot_epochs: expected 1 or more, got 0"):
        contrastive_term({"snapshot_epochs": 0})
    with pytest.raises(ValueError, match="pooling: expected one of mean, cls, pooler, got max"):
        contrastive_term({"pooling": "max"})
    training.teacher = None
    with pytest.raises(ValueError, match="this stage has no teacher"):
        contrastive_term({}).attach(training)
    training.labels = training.labels.float()
    with pytest.raises(ValueError, match="label_weight: 0"):
        contrastive_term({}).attach(training)
