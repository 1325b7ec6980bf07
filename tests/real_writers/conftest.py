"""Tiny models that quantization packages themselves write."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification


@pytest.fixture
def small_bert() -> BertForSequenceClassification:
    """Two layers of 32 features, which rows of 16 and of 32 inputs divide."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    return BertForSequenceClassification(config).eval()
