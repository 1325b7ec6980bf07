"""Distillation losses against closed forms, and what a forward pass sees."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sparse_runtime.compress.training.distillation import (
    attention_scores,
    hidden_states,
    sentence_distance,
    similarity_matrices,
    soft_labels,
    squarehead,
)
from sparse_runtime.compress.training.forward import evaluating, run
from sparse_runtime.compress.training.task_loss import task_loss
from sparse_runtime.statistics import spearman


def test_soft_labels_are_the_divergence_times_the_squared_temperature() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    # At temperature 2 the teacher says 3/4, 1/4 and the student 1/2, 1/2.
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(soft_labels(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-6)
    assert float(soft_labels(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-7)


def test_soft_labels_have_the_gradient_of_the_soft_cross_entropy() -> None:
    torch.manual_seed(0)
    student = torch.randn(5, 7, requires_grad=True)
    teacher = torch.randn(5, 7)
    (ours,) = torch.autograd.grad(soft_labels(student, teacher, 1.0), student)
    entropy = -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()
    (theirs,) = torch.autograd.grad(entropy, student)
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_soft_labels_of_tokens_leave_padding_out() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rows = [(0, 0), (0, 1), (1, 0)]
    each = [soft_labels(student[i, j][None], teacher[i, j][None], 2.0) for i, j in rows]
    found = soft_labels(student, teacher, 2.0, mask)
    assert float(found) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_soft_labels_refuse_a_temperature_of_0() -> None:
    with pytest.raises(ValueError, match="temperature 0"):
        soft_labels(torch.zeros(1, 2), torch.zeros(1, 2), 0)


def test_hidden_states_and_squarehead_on_real_tokens() -> None:
    mask = torch.tensor([[True, True, False]])
    teacher = [torch.full((1, 3, 2), 2.0), torch.full((1, 3, 2), 10.0)]
    student = [torch.full((1, 3, 2), 3.0), torch.full((1, 3, 2), 15.0)]
    for states in student:
        states[:, 2] = 1e6  # padding
    assert float(hidden_states(student, teacher, mask)) == pytest.approx(1 + 25)
    # Relative to the teacher: (1/2)^2 + (5/10)^2, each layer alike.
    assert float(squarehead(student, teacher, mask)) == pytest.approx(0.25 + 0.25)


def test_attention_scores_in_numbers() -> None:
    student = [torch.tensor([[[[1.0, -3.0], [0.0, 2.0]]]])]
    teacher = [torch.tensor([[[[3.0, -1.0], [0.0, 0.0]]]])]
    both, first = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert float(attention_scores(student, teacher, both)) == pytest.approx((4 + 4 + 0 + 4) / 4)
    assert float(attention_scores(student, teacher, first)) == pytest.approx(4)


def test_attention_scores_of_real_tokens_do_not_depend_on_padding() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    expected = float(attention_scores([student], [teacher], mask))
    wide = [F.pad(x, (0, 2, 0, 2), value=7.0) for x in (student, teacher + 1)]
    wide[1][..., :3, :3] = teacher
    found = attention_scores([wide[0]], [wide[1]], F.pad(mask, (0, 2)))
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [hidden_states, squarehead, attention_scores])
def test_a_teacher_of_another_depth_is_refused(loss) -> None:
    states = [torch.zeros(1, 1, 2, 2)] * 3
    with pytest.raises(ValueError, match="depth and width"):
        loss(states, states[:2], torch.ones(1, 2, dtype=torch.bool))


def test_sentences_that_point_the_same_way_are_at_distance_0() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    assert float(sentence_distance(a, a * 5)) == pytest.approx(0, abs=1e-6)
    assert float(sentence_distance(a, b)) == pytest.approx(0.5)
    # Cosine between the two: 0 in a, 1 in b; each sentence to itself does not count.
    assert float(similarity_matrices(a, b)) == pytest.approx(1.0)
    assert float(similarity_matrices(a[:1], b[:1])) == 0.0


def test_task_losses() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
    found = float(task_loss("classification", logits, torch.tensor([0, 1])))
    assert found == pytest.approx((math.log(2) - math.log(0.75)) / 2)
    scores = torch.tensor([[1.0], [2.0]])
    assert float(task_loss("regression", scores, torch.tensor([1.0, 4.0]))) == 2.0
    tokens = logits.unsqueeze(0)
    found = float(task_loss("masked_lm", tokens, torch.tensor([[-100, 1]])))
    assert found == pytest.approx(-math.log(0.75))
    # No token is asked for: nothing to learn, and not NaN.
    assert float(task_loss("masked_lm", tokens, torch.tensor([[-100, -100]]))) == 0.0


def test_spearman_with_ties_is_that_of_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(0)
    a, b = torch.randint(5, (40,)).float(), torch.randn(40)
    assert spearman(a, b) == pytest.approx(scipy_stats.spearmanr(a, b).statistic, abs=1e-12)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_seen_attention_scores_are_those_of_eager_attention(family, checkpoints) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoints[family], attn_implementation="eager").eval()
    inputs = {
        "input_ids": torch.randint(5, 40, (2, 6)),
        "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]),
    }
    with torch.no_grad():
        seen = run(model, inputs, attention=True, hidden=True)
        truth = model(**inputs, output_attentions=True).attentions
    assert len(seen.attention_scores) == len(truth) == 2
    assert len(seen.hidden_states) == 3
    keys = inputs["attention_mask"].bool()[:, None, None, :]
    for scores, weights in zip(seen.attention_scores, truth, strict=True):
        softmax = scores.masked_fill(~keys, -math.inf).softmax(-1)
        assert torch.allclose(softmax, weights, atol=1e-6)
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert not any(linear._forward_hooks for linear in linears)


def test_pooling(checkpoints) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoints["bert"])
    inputs = {
        "input_ids": torch.randint(5, 40, (2, 6)),
        "attention_mask": torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]]),
    }
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        outputs = run(model, inputs, pooling="mean")
        truth = model(**inputs)
    assert modes == [module.training for module in model.modules()]
    assert outputs.sentence is not None
    assert torch.allclose(outputs.sentence[1], truth.last_hidden_state[1, :2].mean(0), atol=1e-6)
    assert torch.equal(outputs.pooled("cls"), truth.last_hidden_state[:, 0])
    assert torch.equal(outputs.pooled("pooler"), truth.pooler_output)
    with pytest.raises(ValueError, match="expected one of"):
        outputs.pooled("max")
