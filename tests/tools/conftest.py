"""A tiny dense BERT to convert, and a thread for a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}


@pytest.fixture(scope="module")
def model() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def source(model: BertModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense BERT with tokenizer files beside it."""
    directory = tmp_path_factory.mktemp("models") / "tiny-bert"
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "README.md").write_text("stays behind")
    return directory


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Many small element-wise passes: threads only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
