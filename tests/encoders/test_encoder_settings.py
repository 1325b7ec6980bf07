"""What a config.json may ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_runtime.encoders.settings import read_dtype, read_settings
from sparse_runtime.spec import FUNCTIONS

BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": 61,
    "max_position_embeddings": 80,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "modernbert"}, "model_type 'modernbert' is not supported.*mpnet"),
        ({"model_type": None}, "model_type None"),
        ({"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice.*'BertModel'"),
        ({"architectures": ["RobertaModel"]}, "RobertaModel.*with model_type 'bert'"),
        ({"architectures": ["ElectraForPreTraining"], "model_type": "electra"}, "'ElectraModel'"),
        ({"architectures": ["BertModel", "BertForMaskedLM"]}, "list of one class name"),
        ({"architectures": "BertModel"}, "list of one class name"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"pruned_heads": {"0": [4]}}, "pruned_heads .*expected lists of heads below 4 by layer"),
        ({"layer_norm_type": "rms"}, "layer_norm_type 'rms' is not supported, expected 'no_norm'"),
        ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu' is not supported"),
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple of 4 heads.*states head_size"),
        ({"hidden_size": 0}, "hidden_size 0: expected an integer of at least 1"),
        ({"hidden_size": "wide"}, "config.json: .*hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers -1"),
        ({"model_type": "roberta", "architectures": [], "pad_token_id": None}, "pad_token_id None"),
        ({"architectures": ["BertForQuestionAnswering"], "num_labels": 3}, "2 labels, got 3"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings({**BERT, **changes})


def test_missing_fields_take_the_defaults_of_transformers() -> None:
    data = {key: BERT[key] for key in ("model_type", "hidden_size", "num_attention_heads")}
    settings = read_settings(data)
    assert (settings.task, settings.layers, settings.norm_eps) == ("base", 12, 1e-12)
    assert settings.activation == "gelu"
    assert settings.rows == {"word": 30522, "token_type": 2, "position": 512}


@pytest.mark.parametrize(
    ("model_type", "name", "task"),
    [
        ("xlm-roberta", "XLMRobertaForTokenClassification", "token_classification"),
        ("camembert", "CamembertForMaskedLM", "masked_lm"),
        ("xlm-roberta", "RobertaModel", "base"),  # the three families share every name
        ("mpnet", "MPNetForQuestionAnswering", "question_answering"),
        ("bert", "BertForPreTraining", "masked_lm"),
    ],
)
def test_tasks(model_type: str, name: str, task: str) -> None:
    assert read_settings({"model_type": model_type, "architectures": [name]}).task == task


def test_numbers_of_another_type_mean_the_same() -> None:
    changes = {"layer_norm_eps": 1, "intermediate_size": 48.0, "initializer_range": 1}
    nulls = {"use_cache": None, "hidden_dropout_prob": None, "attention_probs_dropout_prob": None}
    settings = read_settings({**BERT, **changes, **nulls})
    assert (settings.norm_eps, settings.intermediate) == (1.0, 48)
    assert settings.config.use_cache is True
    with pytest.raises(ValueError, match="intermediate_size"):
        read_settings({**BERT, "intermediate_size": 48.5})


def test_a_sentence_encoder_runs_the_base_model() -> None:
    # Checkpoints of sentence-transformers often keep the class they were trained from.
    data = {"model_type": "mpnet", "architectures": ["MPNetForMaskedLM"]}
    assert read_settings(data, sentence_encoder=True).task == "base"


def test_labels_are_counted_by_their_names() -> None:
    data = {**BERT, "id2label": {str(i): f"name {i}" for i in range(7)}}
    assert read_settings(data).sizes["labels"] == 7


def test_stored_attentions_are_ignored_aloud(caplog: pytest.LogCaptureFixture) -> None:
    read_settings({**BERT, "output_attentions": True})
    assert "output_attentions is ignored" in caplog.text


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_activation_names_mean_what_transformers_means(name: str) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    assert (ACT2FN[name](x) - ACT2FN[FUNCTIONS[name]](x)).abs().max().item() < 1e-7


def test_dtypes() -> None:
    assert read_dtype(None) == torch.float32
    assert read_dtype("bfloat16") == torch.bfloat16
    for wrong in ("int8", torch.float64, "half"):
        with pytest.raises(ValueError, match="expected one of float32, bfloat16, float16"):
            read_dtype(wrong)
