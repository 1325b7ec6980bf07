"""Names: old spellings, wrappers, buffers, and what a tensor is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from sparse_runtime.checkpoints import CheckpointError, kind_of, natural_key, open_checkpoint

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "xlm-roberta": XLMRobertaConfig(**SIZES),
    "camembert": CamembertConfig(**SIZES),
    "electra": ElectraConfig(**SIZES, embedding_size=16),
    "mpnet": MPNetConfig(**SIZES),
    "distilbert": DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
}
HEAD_PARTS = {"cls", "lm_head", "classifier", "pooler", "pre_classifier", "generator_lm_head"}
HEAD_PARTS |= {"vocab_transform", "vocab_projector", "generator_predictions"}


@pytest.mark.parametrize("model_class", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_kinds_agree_with_the_modules_of_transformers(
    architecture: str, model_class: type[AutoModelForMaskedLM]
) -> None:
    model = model_class.from_config(CONFIGS[architecture])
    linears = 0
    for module_name, module in model.named_modules():
        for part, tensor in module.named_parameters(recurse=False):
            name = f"{module_name}.{part}"
            kind = kind_of(name, tuple(tensor.shape))
            in_head = bool(HEAD_PARTS & set(module_name.split(".")))
            if isinstance(module, torch.nn.LayerNorm):
                assert kind == "norm", name
            elif isinstance(module, torch.nn.Embedding):
                assert kind == "embedding", name
            elif in_head:
                assert kind == "head", name
            else:
                in_stack = ".layer." in name and tensor.ndim == 2
                assert kind == ("encoder_linear" if in_stack else "other"), name
                linears += kind == "encoder_linear"
    assert linears == 2 * 6


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("transformer.layers.3.attn.qkv.weight", (96, 32), "encoder_linear"),
        # 3-D and 1-D tensors of a layer are no matrices.
        ("encoder.layer.0.experts.weight", (4, 8, 8), "other"),
        ("encoder.layer.0.output.dense.weight", (8,), "other"),
        # Tables inside a layer: relative positions are looked up, never multiplied.
        ("encoder.layer.0.attention.self.distance_embedding.weight", (31, 8), "embedding"),
        ("encoder.relative_attention_bias.weight", (32, 4), "embedding"),
        # A decoder's stack and a stack without its parent's name are something else.
        ("decoder.layers.0.self_attn.q_proj.weight", (8, 8), "other"),
        ("model.layers.0.mlp.Wi.weight", (8, 8), "other"),
        ("embeddings_project.weight", (32, 16), "other"),
        ("weight", (2, 2), "other"),
    ],
)
def test_kind_of_names_that_look_alike(name: str, shape: tuple[int, ...], kind: str) -> None:
    assert kind_of(name, shape) == kind


def test_old_names_are_brought_up_to_date_and_reported(
    write: Callable[..., Path], untied: dict[str, Tensor]
) -> None:
    # As DataParallel writes a BERT that came from TensorFlow.
    old = {}
    for name, tensor in untied.items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        old[f"module.{name}"] = tensor
    old["module.bert.embeddings.position_ids"] = torch.arange(16)
    checkpoint = open_checkpoint(write(old))
    assert set(checkpoint.tensors) == set(untied)
    assert all(torch.equal(checkpoint.tensors[name], untied[name]) for name in untied)
    gamma = "module.bert.embeddings.LayerNorm.gamma"
    assert checkpoint.renamed[gamma] == "bert.embeddings.LayerNorm.weight"
    assert len(checkpoint.renamed) == len(untied)
    assert list(checkpoint.dropped) == ["module.bert.embeddings.position_ids"]


def test_wrappers_may_be_nested(write: Callable[..., Path]) -> None:
    name = "_orig_mod.module.encoder.layer.0.dense.weight"
    checkpoint = open_checkpoint(write({name: torch.ones(2, 2)}))
    assert checkpoint.renamed == {name: "encoder.layer.0.dense.weight"}


def test_two_spellings_of_one_name_are_refused(write: Callable[..., Path]) -> None:
    tensors = {"norm.gamma": torch.ones(2), "norm.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"two spellings of 'norm\.weight'"):
        open_checkpoint(write(tensors))


def test_only_integer_buffers_are_dropped(write: Callable[..., Path]) -> None:
    tensors = {
        "embeddings.position_ids": torch.arange(4).unsqueeze(0),
        "embeddings.token_type_ids": torch.zeros(1, 4, dtype=torch.int64),
        "extra.position_ids": torch.ones(4),
    }
    checkpoint = open_checkpoint(write(tensors))
    assert list(checkpoint.dropped) == [
        "embeddings.position_ids",
        "embeddings.token_type_ids",
    ]
    assert list(checkpoint.tensors) == ["extra.position_ids"]


def test_natural_order_counts() -> None:
    names = ["layer.10.a", "layer.2.b", "layer.2.a", "classifier", "layer.9.a"]
    expected = ["classifier", "layer.2.a", "layer.2.b", "layer.9.a", "layer.10.a"]
    assert sorted(names, key=natural_key) == expected
