"""What models are judged by: tokens or texts, by what an output is and not by its sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import BertConfig, BertForQuestionAnswering
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from sparse_runtime.compress.oneshot.activation_ranges import activation_ranges
from sparse_runtime.compress.oneshot.fisher import RandomProjection
from sparse_runtime.compress.oneshot.layer_format import LayerFormat
from sparse_runtime.compress.oneshot.outputs import judged, without_padding
from sparse_runtime.compress.oneshot.sensitivity import sensitivity, squared_change

TOKENS = 7
BATCH = {"attention_mask": torch.tensor([[1] * TOKENS, [1, 1, 0, 0, 0, 0, 0]])}


def test_as_many_classes_as_tokens_are_no_tokens() -> None:
    ones = SequenceClassifierOutput(logits=torch.ones(2, TOKENS))
    zeros = SequenceClassifierOutput(logits=torch.zeros(2, TOKENS))
    assert squared_change(ones, zeros, BATCH) == 2 * TOKENS
    projected = RandomProjection(0)(ones, BATCH)
    signs = torch.randint(0, 2, (2, TOKENS), generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(projected, signs.sum(1).float())


def test_padding_of_tokens_is_left_out() -> None:
    output = TokenClassifierOutput(logits=torch.ones(2, TOKENS, 3))
    assert without_padding(judged(output), BATCH).shape == (TOKENS + 2, 3)


def test_both_ends_of_an_answer_count() -> None:
    spans = QuestionAnsweringModelOutput(
        start_logits=torch.ones(2, TOKENS), end_logits=torch.full((2, TOKENS), 2.0)
    )
    nothing = QuestionAnsweringModelOutput(
        start_logits=torch.zeros(2, TOKENS), end_logits=torch.zeros(2, TOKENS)
    )
    assert squared_change(spans, nothing, BATCH) == (TOKENS + 2) * 5


def test_answers_do_not_hang_on_what_is_padding() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        num_hidden_layers=1,
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
    )
    model = BertForQuestionAnswering(config).eval()
    ids = torch.randint(5, 30, (2, TOKENS))
    errors = []
    for padding in (1, 2):
        padded = ids.masked_fill(BATCH["attention_mask"] == 0, padding)
        batch = {"input_ids": padded, **BATCH}
        table = sensitivity(model, [batch], [LayerFormat.parse("2:4 int4")], progress=False)
        errors.append([row.error for row in table.rows])
    assert torch.allclose(torch.tensor(errors[0]), torch.tensor(errors[1]), rtol=1e-4)


def test_ranges_take_every_feature_of_a_pooled_text() -> None:
    model: Any = torch.nn.Module()
    model.pooler = torch.nn.Linear(TOKENS, 2)
    values = torch.zeros(2, TOKENS)
    values[1, -1] = 255.0  # where the mask has padding
    model.forward = lambda **batch: SimpleNamespace(out=model.pooler(values))
    found = activation_ranges(
        model, {"pooler": model.pooler}, [BATCH], method="min-max", progress=False
    )
    assert found["pooler"].scale == 1.0
