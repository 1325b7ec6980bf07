"""Tiny checkpoints of every head, their packed models, and the command in this process."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner, Result

import sparse_runtime as sr
from sparse_runtime.cli import app

LABELS = {"id2label": {0: "low", 1: "mid", 2: "high"}, "label2id": {"low": 0, "mid": 1, "high": 2}}
# What a test calls a model -> its class and configuration.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("BertModel", {}),
    "labels": ("BertForSequenceClassification", LABELS),
    "multi": (
        "BertForSequenceClassification",
        {**LABELS, "problem_type": "multi_label_classification"},
    ),
    "score": ("BertForSequenceClassification", {"num_labels": 1}),
    "scores": ("BertForSequenceClassification", {**LABELS, "problem_type": "regression"}),
    "tokens": ("BertForTokenClassification", LABELS),
    "answers": ("BertForQuestionAnswering", {}),
    "words": ("BertForMaskedLM", {}),
}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of the random checkpoint of a name in MODELS, with a tokenizer of letters."""
    made: dict[str, Path] = {}

    def make(key: str) -> Path:
        if key not in made:
            name, fields = MODELS[key]
            config = transformers.BertConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                max_position_embeddings=40,
                **fields,
            )
            torch.manual_seed(0)
            model = getattr(transformers, name)(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    # Fresh weights are so small that every text gives the same answer.
                    parameter.add_(torch.randn_like(parameter) * 0.15)
            made[key] = tmp_path_factory.mktemp(key) / "source"
            model.save_pretrained(made[key])
            letters = string.ascii_lowercase
            words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
            words += [f"##{letter}" for letter in letters]
            vocabulary = {word: i for i, word in enumerate(words)}
            transformers.BertTokenizer(vocab=vocabulary).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def packed(
    source: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Directory of the packed model, FP32, of a name in MODELS."""
    made: dict[str, Path] = {}

    def make(key: str) -> Path:
        if key not in made:
            made[key] = tmp_path_factory.mktemp(key) / "packed"
            sr.convert(source(key), made[key], values="fp32", progress=False)
        return made[key]

    return make


@pytest.fixture
def command() -> Callable[..., Result]:
    """Runs `sparse-runtime` with these arguments."""

    def run(*arguments: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return run
