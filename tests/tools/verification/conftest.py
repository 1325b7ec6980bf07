"""Tiny random checkpoints with a tokenizer, and the packed models made from them."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import sparse_runtime as sr

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
# DistilBERT has other names for its sizes and no token types.
DISTILBERT = {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}


def write_checkpoint(
    directory: Path, model_type: str = "bert", name: str = "BertModel", **fields: Any
) -> Path:
    """A random model and a tokenizer that knows letters, as Hugging Face saves them."""
    sizes = DISTILBERT if model_type == "distilbert" else SIZES
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**sizes, **fields})
    config.architectures = [name]
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh weights are so small that every text gives the same answer.
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(directory)
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *letters]
    vocabulary = {word: i for i, word in enumerate(words)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """(directory, model_type, class name, **configuration) -> the directory, written."""
    return write_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "source")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Converts a source once for each set of arguments."""
    done: dict[str, Path] = {}

    def convert(source: Path, **arguments: Any) -> Path:
        key = f"{source} {arguments}"
        if key not in done:
            done[key] = tmp_path_factory.mktemp("packed") / "model"
            sr.convert(source, done[key], progress=False, **arguments)
        return done[key]

    return convert
