"""Tied and shared weights appear once, the other names as aliases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM

from sparse_runtime.checkpoints import open_checkpoint

EMBEDDING = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
BIASES = {"cls.predictions.decoder.bias": "cls.predictions.bias"}


@pytest.mark.parametrize("layout", ["torch", "old_torch"])
def test_shared_storage_of_a_pickle_is_one_tensor(
    layout: str, write: Callable[..., Path], bert: BertForMaskedLM, untied: dict[str, Tensor]
) -> None:
    checkpoint = open_checkpoint(write(dict(bert.state_dict()), layout))
    assert checkpoint.aliases == {DECODER: EMBEDDING, **BIASES}
    assert set(checkpoint.tensors) == set(untied)


def test_the_embedding_is_kept_though_the_decoder_comes_first(write: Callable[..., Path]) -> None:
    weight = torch.randn(5, 4)
    checkpoint = open_checkpoint(write({DECODER: weight, EMBEDDING: weight}, "torch"))
    assert checkpoint.aliases == {DECODER: EMBEDDING}
    assert list(checkpoint.tensors) == [EMBEDDING]


@pytest.mark.parametrize(
    ("other", "kept"),
    [
        (DECODER, EMBEDDING),
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
        ("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ],
)
def test_equal_bytes_under_tied_names_are_one_tensor(
    other: str, kept: str, write: Callable[..., Path]
) -> None:
    weight = torch.randn(5, 4)
    checkpoint = open_checkpoint(write({other: weight.clone(), kept: weight}))
    assert checkpoint.aliases == {other: kept}
    assert list(checkpoint.tensors) == [kept]


@pytest.mark.parametrize(
    "changed",
    [
        torch.full((5, 4), 2.0),
        # Equal numbers, other bytes: -0.0 and another dtype.
        torch.full((5, 4), -0.0),
        torch.zeros(5, 4, dtype=torch.bfloat16),
        torch.zeros(4, 5),
    ],
)
def test_different_bytes_under_tied_names_stay_two_tensors(
    changed: Tensor, write: Callable[..., Path]
) -> None:
    checkpoint = open_checkpoint(write({EMBEDDING: torch.zeros(5, 4), DECODER: changed}))
    assert checkpoint.aliases == {}
    assert set(checkpoint.tensors) == {EMBEDDING, DECODER}


def test_equal_bytes_under_unrelated_names_stay_two_tensors(write: Callable[..., Path]) -> None:
    tensors = {"a.bias": torch.zeros(4), "b.bias": torch.zeros(4)}
    checkpoint = open_checkpoint(write(tensors))
    assert checkpoint.aliases == {}
    assert set(checkpoint.tensors) == set(tensors)


def test_views_of_one_storage_are_different_tensors(write: Callable[..., Path]) -> None:
    # A fused matrix cut into query and key shares storage, and not one element.
    fused = torch.randn(8, 4)
    tensors = {"encoder.layer.0.q.weight": fused[:4], "encoder.layer.0.k.weight": fused[4:]}
    checkpoint = open_checkpoint(write(tensors, "torch"))
    assert checkpoint.aliases == {}
    assert torch.equal(checkpoint.tensors["encoder.layer.0.k.weight"], fused[4:])


def test_layers_that_share_weights_share_them(write: Callable[..., Path]) -> None:
    weight = torch.randn(4, 4)
    names = [f"encoder.layer.{i}.dense.weight" for i in range(3)]
    checkpoint = open_checkpoint(write(dict.fromkeys(names, weight), "torch"))
    assert checkpoint.aliases == {names[1]: names[0], names[2]: names[0]}


def test_aliases_carry_todays_names(write: Callable[..., Path]) -> None:
    weight = torch.randn(5, 4)
    tensors = {f"module.{EMBEDDING}": weight, f"module.{DECODER}": weight}
    assert open_checkpoint(write(tensors, "torch")).aliases == {DECODER: EMBEDDING}
