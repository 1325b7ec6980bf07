"""Small random encoders of every family that is compressed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

SIZES = {"vocab_size": 60, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}


def _distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=60, n_layers=2, dim=32, hidden_dim=48, n_heads=2)
    )


def _family(config: str, model: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**SIZES, num_attention_heads=2)
        return getattr(transformers, model)(made)

    return make


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "bert": _family("BertConfig", "BertForSequenceClassification"),
    "bert_mlm": _family("BertConfig", "BertForMaskedLM"),
    "roberta": _family("RobertaConfig", "RobertaForSequenceClassification"),
    "electra": _family("ElectraConfig", "ElectraForSequenceClassification"),
    "mpnet": _family("MPNetConfig", "MPNetModel"),
    "distilbert": _distilbert,
}


@pytest.fixture
def make_model() -> Callable[[str], nn.Module]:
    """Makes a family's model with 2 layers, 2 heads, 32 features and 48 neurons."""

    def make(family: str = "bert") -> nn.Module:
        torch.manual_seed(0)
        return FAMILIES[family]().eval()

    return make
