"""Reordered models compute what they did, and their matrices keep more of a pattern."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from sparse_runtime.compress.oneshot.permutation import permute, reorder, reorder_heads
from sparse_runtime.compress.patterns import Pattern
from sparse_runtime.compress.targets import layers

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(**SIZES))


def roberta() -> nn.Module:
    return RobertaForMaskedLM(RobertaConfig(**SIZES, pad_token_id=1))


def distilbert() -> nn.Module:
    return DistilBertModel(
        DistilBertConfig(
            vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=40
        )
    )


def mpnet() -> nn.Module:
    return MPNetModel(MPNetConfig(**SIZES))


FAMILIES = [bert, roberta, distilbert, mpnet]


def made(family: Any) -> nn.Module:
    torch.manual_seed(0)
    model = family().double().eval()
    for parameter in model.parameters():  # biases start as zeros, which no order would show
        nn.init.normal_(parameter, std=0.2)
    return model


def outputs(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["neurons", "values", "queries"])
def test_any_allowed_order_keeps_the_function(family: Any, part: Any) -> None:
    model = made(family)
    expected, original = outputs(model), copy.deepcopy(model)
    orders = []
    for layer in layers(model):
        if part == "neurons":
            order = torch.randperm(48)
        else:  # within each of the 2 heads of 16
            order = torch.cat([torch.randperm(16), 16 + torch.randperm(16)])
        reorder(layer, part, order)
        orders.append(order)
    assert not torch.equal(flat(model), flat(original))
    # Sums in another order: float64's rounding and nothing else.
    torch.testing.assert_close(outputs(model), expected, rtol=1e-11, atol=1e-11)
    for layer, order in zip(layers(model), orders, strict=True):
        reorder(layer, part, order.argsort())
    assert torch.equal(flat(model), flat(original))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f is not mpnet])
def test_heads_trade_places(family: Any) -> None:
    model = made(family)
    expected = outputs(model)
    for layer in layers(model):
        reorder_heads(layer, torch.tensor([1, 0]), 16)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("pattern", "matrices"),
    [
        ("2:4", 2),  # columns of attention_output and ffn_out
        ("1:4", 2),
        ("block:4x1@0.5", 4),  # rows of query, key, value, ffn_in
        ("block:1x4@0.5", 2),
        ("block:8x8@0.5", 6),  # rows and columns at once
        ("block:2x8@0.5", 2),  # the larger side decides
        ("block:32x32@0.5", 3),  # wider than a head: whole heads move
    ],
)
def test_permute_keeps_more_and_the_function(pattern: str, matrices: int) -> None:
    model = made(bert)
    expected = outputs(model)
    found = permute(model, Pattern.parse(pattern), progress=False)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-11, atol=1e-11)
    assert all(kept.after >= kept.before - 1e-12 for kept in found)
    searched = {kept.name.split(".layer.1.")[1] for kept in found if ".layer.1." in kept.name}
    assert len(searched) >= matrices
    if pattern != "block:32x32@0.5":
        assert sum(kept.after > kept.before for kept in found) >= len(found) // 2


def test_heads_with_biases_of_their_own_stay() -> None:
    model = made(mpnet)
    expected = outputs(model)
    permute(model, Pattern.parse("block:32x32@0.5"), progress=False)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-11, atol=1e-11)


def test_what_is_reported_is_what_the_pattern_keeps() -> None:
    model = made(distilbert)
    pattern = Pattern.parse("2:4")
    for kept in permute(model, pattern, progress=False):
        squares = model.get_submodule(kept.name).weight.detach().square()
        share = (squares * pattern.mask(squares)).sum() / squares.sum()
        assert kept.after == pytest.approx(float(share), rel=1e-9)


def test_importance_moves_with_the_channels() -> None:
    model = made(bert)
    norms = torch.rand(48, dtype=torch.float64) ** 4
    name = "bert.encoder.layer.0.output.dense"
    before = model.get_submodule(name).weight.detach().clone()
    pattern = Pattern.parse("2:4")
    found = {k.name: k for k in permute(model, pattern, importance={name: norms}, progress=False)}
    after = model.get_submodule(name).weight.detach()
    moved = torch.cdist(after.t(), before.t()).argmin(1)  # which column went where
    squares = (after * norms[moved]).square()
    share = (squares * pattern.mask(squares)).sum() / squares.sum()
    assert found[name].after == pytest.approx(float(share), rel=1e-9)
    assert found[name].after > found[name].before


def test_what_cannot_help_or_be_is_refused() -> None:
    model = made(bert)
    with pytest.raises(ValueError, match="unstructured"):
        permute(model, Pattern.parse("unstructured@0.5"))
    with pytest.raises(ValueError, match="permutation of 48"):
        reorder(layers(model)[0], "neurons", torch.zeros(48, dtype=torch.int64))


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
