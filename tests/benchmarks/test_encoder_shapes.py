"""The named shapes are those of the models that transformers builds."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from sparse_runtime.benchmarks.encoder_shapes import load_shape, shape_names


def test_all_named_shapes_are_there() -> None:
    assert {"minilm", "distilbert", "bert-base", "bert-large"} <= set(shape_names())


@pytest.mark.parametrize("name", shape_names())
def test_a_shape_is_that_of_the_model_its_configuration_makes(name: str) -> None:
    shape = load_shape(name)
    assert shape.name == name
    config = AutoConfig.for_model(**shape.config)
    assert config.hidden_size == shape.hidden
    assert config.num_hidden_layers == shape.layers
    assert config.num_attention_heads == shape.heads
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    assert len(stack) == shape.layers
    found = sorted(
        tuple(m.weight.shape) for m in stack[0].modules() if isinstance(m, torch.nn.Linear)
    )
    rows, cols = shape.linears["qkv"]
    separate = [(rows // 3, cols)] * 3
    assert found == sorted([*separate, *(v for k, v in shape.linears.items() if k != "qkv")])


def test_an_unknown_shape_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"shape 'bert': expected one of .*bert-base.*minilm"):
        load_shape("bert")
