"""Contrastive losses against hand calculations; the banks' candidates, masks and resumption."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparse_runtime.compress.training.contrastive import (
    ContrastiveBanks,
    ContrastiveSettings,
    info_nce,
)

INSTANCE_ONLY = ContrastiveSettings(instance_weight=1.0, label_weight=0.0, extra_candidates=0)


def vectors(examples: int, width: int, seed: int) -> Tensor:
    return normalize(torch.randn(examples, width, generator=torch.Generator().manual_seed(seed)))


def test_info_nce_by_hand() -> None:
    # Query 0: one positive of three candidates; query 1: two positives, one candidate excluded;
    # query 2: no positive. So there are three pairs.
    similarities = torch.tensor([[0.5, 0.2, -0.1], [0.3, 0.1, 0.9], [0.4, 0.4, 0.4]])
    positives = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])
    excluded = torch.tensor([[False, False, False], [False, False, True], [False, False, False]])
    first = -math.log(math.exp(1.0) / (math.exp(1.0) + math.exp(0.4) + math.exp(-0.2)))
    bottom = math.exp(0.6) + math.exp(0.2)
    second = -0.5 * (math.log(math.exp(0.6) / bottom) + math.log(math.exp(0.2) / bottom))
    loss = info_nce(similarities, positives, excluded, temperature=0.5)
    assert loss.item() == pytest.approx((first + second) / 3, rel=1e-6)


def test_excluded_outweighs_positive_and_nothing_positive_gives_zero() -> None:
    similarities = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = info_nce(similarities, torch.tensor([[True, False]]), torch.tensor([[True, False]]), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(similarities.grad, torch.zeros(1, 2))


def instance_loss_by_hand(queries: Tensor, bank: Tensor, temperature: float) -> float:
    """Batch is the whole bank: candidates are the other queries and every bank entry."""
    total = 0.0
    for row in range(len(queries)):
        scores = [float(queries[row] @ queries[c]) for c in range(len(queries)) if c != row]
        scores += [float(queries[row] @ bank[c]) for c in range(len(bank))]
        own = math.exp(float(queries[row] @ bank[row]) / temperature)
        total -= math.log(own / sum(math.exp(s / temperature) for s in scores))
    return total / len(queries)


def test_instance_term_by_hand() -> None:
    banks = ContrastiveBanks(3, replace(INSTANCE_ONLY, banks=("pretrained",)))
    stored, queries = vectors(3, 4, 0), vectors(3, 4, 1)
    banks.fill("pretrained", stored)
    expected = instance_loss_by_hand(queries, stored.half().float(), 0.1)
    assert banks.loss(queries, torch.arange(3)).item() == pytest.approx(expected, rel=1e-5)


def test_label_term_by_hand() -> None:
    # Examples 0 and 2 share a class: positives of query 0 are query 2 and the entries 0 and 2.
    settings = ContrastiveSettings(0.0, 1.0, 0.5, 0, ("finetuned",))
    banks = ContrastiveBanks(3, settings, labels=torch.tensor([7, 8, 7]))
    stored, queries = vectors(3, 4, 2), vectors(3, 4, 3)
    banks.fill("finetuned", stored)
    entries = stored.half().float()
    candidates = [(0, queries[0]), (1, queries[1]), (2, queries[2])]
    candidates += [(owner, entries[owner]) for owner in range(3)]
    labels, total, pairs = [7, 8, 7], 0.0, 0
    for row in range(3):
        usable = [
            (labels[owner] == labels[row], math.exp(float(queries[row] @ vector) / 0.5))
            for place, (owner, vector) in enumerate(candidates)
            if place != row
        ]
        bottom = sum(value for _, value in usable)
        shares = [math.log(value / bottom) for positive, value in usable if positive]
        total -= sum(shares) / len(shares)
        pairs += len(shares)
    assert pairs == 7
    assert banks.loss(queries, torch.arange(3)).item() == pytest.approx(total / 7, rel=1e-5)


def test_banks_and_snapshots_add_up() -> None:
    # 5 examples, a batch of 2 and 2 extras: every bank draws its own.
    labels = torch.tensor([0, 1, 0, 1, 0])
    settings = ContrastiveSettings(0.3, 3.0, 0.1, 2)
    queries, indices = vectors(2, 4, 4), torch.tensor([3, 0])
    whole = ContrastiveBanks(5, settings, labels=labels, seed=5)
    for name, seed in (("pretrained", 6), ("snapshots", 7), ("snapshots", 8), ("finetuned", 9)):
        whole.fill(name, vectors(5, 4, seed))
    assert whole.snapshots == 2
    state = whole.state_dict()["generator"]
    total = whole.loss(queries, indices).item()
    parts = 0.0
    for name in settings.banks:
        part = ContrastiveBanks(5, replace(settings, banks=(name,)), labels=labels)
        part.load_state_dict({"vectors": whole.state_dict()["vectors"], "generator": state})
        parts += part.loss(queries, indices).item()
        state = part.state_dict()["generator"]
    assert total == pytest.approx(parts, rel=1e-6)


@pytest.mark.parametrize(("extra", "snapshots", "expected"), [(4, 1, 4), (4, 2, 2), (99, 1, 7)])
def test_extras_are_other_examples_and_shared_between_snapshots(
    extra: int, snapshots: int, expected: int
) -> None:
    banks = ContrastiveBanks(10, replace(INSTANCE_ONLY, extra_candidates=extra))
    batch = torch.tensor([1, 4, 9])
    drawn = banks._extras(batch, snapshots)
    assert len(drawn) == expected == len(set(drawn.tolist()))
    assert not set(drawn.tolist()) & set(batch.tolist())


def test_loss_pulls_a_query_to_its_own_entry() -> None:
    banks = ContrastiveBanks(6, replace(INSTANCE_ONLY, banks=("finetuned",)))
    stored = vectors(6, 8, 10)
    banks.fill("finetuned", stored)
    student = vectors(6, 8, 11).requires_grad_()
    before = banks.loss(normalize(student), torch.arange(6))
    (gradient,) = torch.autograd.grad(before, student)
    with torch.no_grad():
        moved = normalize(student - 0.1 * gradient)
    assert banks.loss(moved, torch.arange(6)) < before
    assert (moved * stored).sum() > (normalize(student) * stored).sum()


def test_resumption_is_exact() -> None:
    def make() -> ContrastiveBanks:
        return ContrastiveBanks(
            20, ContrastiveSettings(extra_candidates=5), labels=torch.arange(20) % 3, seed=1
        )

    banks = make()
    for name in ("pretrained", "finetuned", "snapshots"):
        banks.fill(name, vectors(20, 4, len(name)))
    batches = [torch.arange(i, i + 4) for i in range(0, 16, 4)]
    queries = [vectors(4, 4, i) for i in range(4)]
    for i in range(2):
        banks.loss(queries[i], batches[i])
    resumed = make()
    resumed.load_state_dict(banks.state_dict())
    for i in (2, 3):
        assert torch.equal(banks.loss(queries[i], batches[i]), resumed.loss(queries[i], batches[i]))


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="label_weight: 0"):
        ContrastiveBanks(3, ContrastiveSettings())
    with pytest.raises(ValueError, match="expected 3 integers"):
        ContrastiveBanks(3, ContrastiveSettings(), labels=torch.zeros(3))
    with pytest.raises(ValueError, match="banks"):
        ContrastiveSettings(banks=("teacher",))
    with pytest.raises(ValueError, match="temperature: expected a number above 0, got 0"):
        ContrastiveSettings(temperature=0)
    banks = ContrastiveBanks(3, INSTANCE_ONLY)
    with pytest.raises(ValueError, match="'pretrained' is empty"):
        banks.loss(vectors(1, 4, 0), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"expected \[3, width\]"):
        banks.fill("pretrained", vectors(2, 4, 0))
    other = ContrastiveBanks(2, INSTANCE_ONLY)
    other.fill("finetuned", vectors(2, 4, 0))
    with pytest.raises(ValueError, match="expected 3 vectors, got 2"):
        banks.load_state_dict(other.state_dict())
