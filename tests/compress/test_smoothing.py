"""Smoothing changes no bit of a float model's outputs, or is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from sparse_runtime.compress.oneshot.smoothing import smooth, smooth_neurons, smooth_values
from sparse_runtime.compress.targets import layers

SIZES = {"vocab_size": 60, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}


def relu_bert() -> nn.Module:
    return BertModel(BertConfig(**SIZES, num_attention_heads=2, hidden_act="relu"))


def relu_distilbert() -> nn.Module:
    return DistilBertModel(
        DistilBertConfig(
            vocab_size=60, n_layers=2, dim=32, hidden_dim=48, n_heads=2, activation="relu"
        )
    )


@pytest.mark.parametrize("make", [relu_bert, relu_distilbert])
def test_no_bit_changes(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    ids = torch.randint(3, 60, (3, 7))
    for layer in layers(model):  # some channels far larger than others, one dead
        with torch.no_grad():
            layer.linears["value"].weight[3] *= 50
            layer.linears["ffn_in"].weight[5] *= 50
            layer.linears["ffn_out"].weight[:, 7] = 0
    with torch.no_grad():
        expected = model(input_ids=ids)[0]
    factors = smooth(model)
    assert len(factors) == 4
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids)[0], expected)
    for found in factors.values():
        assert torch.equal(torch.exp2(found.log2().round()), found)
        assert float(found.max()) >= 4
    assert factors[layers(model)[0].names["ffn_out"]][7] == 1


def test_channels_are_evened_out() -> None:
    torch.manual_seed(0)
    model = relu_bert()
    layer = layers(model)[0]
    with torch.no_grad():
        layer.linears["value"].weight[:4] *= 64
    largest = layer.linears["value"].weight.norm(dim=1)
    factors = smooth_values(layer, largest, strength=1.0)
    after = largest / factors
    assert after.max() / after.min() < 4 < largest.max() / largest.min()


def test_gelu_is_refused_by_name(make_model: Callable[[str], nn.Module]) -> None:
    layer = layers(make_model("bert"))[0]
    with pytest.raises(ValueError, match=r"encoder.layer.0: .*GELU"):
        smooth_neurons(layer)
    # Where the feed-forward cannot be smoothed, the values are.
    assert len(smooth(make_model("bert"))) == 2


def test_arguments_are_checked() -> None:
    layer = layers(relu_bert())[0]
    with pytest.raises(ValueError, match="expected 32 magnitudes"):
        smooth_values(layer, torch.ones(5))
    with pytest.raises(ValueError, match="strength 2"):
        smooth_values(layer, strength=2)
