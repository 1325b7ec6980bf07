"""Targets are the six linear layers of every encoder layer, in order, in every family."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_runtime.compress import COMPONENTS, component, encoder_linears, layers

# Rows and columns tell the components apart: 32 features, 48 neurons.
SHAPES = {name: (32, 32) for name in COMPONENTS} | {"ffn_in": (48, 32), "ffn_out": (32, 48)}


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "mpnet", "distilbert"])
def test_every_family_has_its_six_linears_a_layer(family: str, make_model) -> None:
    model = make_model(family)
    linears = encoder_linears(model)
    assert len(linears) == 12
    assert all(model.get_submodule(name) is linear for name, linear in linears.items())
    stack = layers(model)
    assert [layer.index for layer in stack] == [0, 1]
    assert [name for layer in stack for name in layer.names.values()] == [*layers_in_order(linears)]
    for layer in stack:
        assert tuple(layer.linears) == COMPONENTS
        assert layer.module is model.get_submodule(layer.path)
        for part, linear in layer.linears.items():
            assert tuple(linear.weight.shape) == SHAPES[part]
            assert component(layer.names[part]) == part


def layers_in_order(linears: dict[str, nn.Linear]) -> list[str]:
    """Names by layer and component, from their own text alone."""
    return sorted(
        linears, key=lambda name: (".layer.1." in name, COMPONENTS.index(component(name)))
    )


def test_layer_ten_follows_layer_nine() -> None:
    model = nn.Module()
    model.encoder = nn.Module()
    model.encoder.layer = nn.ModuleList([nn.Module() for _ in range(11)])
    for layer in model.encoder.layer:
        layer.intermediate = nn.ModuleDict({"dense": nn.Linear(4, 4)})
    assert [*encoder_linears(model)][-2:] == [
        "encoder.layer.9.intermediate.dense",
        "encoder.layer.10.intermediate.dense",
    ]


def test_include_exclude_and_pooler(make_model) -> None:
    model = make_model("bert")
    assert "bert.pooler.dense" in encoder_linears(model, pooler=True)
    assert "bert.pooler.dense" not in encoder_linears(model)
    queries = encoder_linears(model, include=r"self\.(query|key)", exclude=r"layer\.1\.|key")
    assert [*queries] == ["bert.encoder.layer.0.attention.self.query"]


def test_nothing_left_lists_what_there_is(make_model) -> None:
    with pytest.raises(ValueError, match=r"include='q_lin'.*bert\.encoder\.layer\.0\.attention"):
        encoder_linears(make_model("bert"), include="q_lin")
    with pytest.raises(ValueError, match=r"Sequential: expected linear layers.*got 0"):
        encoder_linears(nn.Sequential(nn.Linear(2, 2)))


def test_unknown_names_and_missing_components_are_refused(make_model) -> None:
    with pytest.raises(ValueError, match=r"^classifier: expected a linear layer of an encoder"):
        component("classifier")
    model = make_model("bert")
    model.bert.encoder.layer[1].intermediate.dense = nn.Identity()
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.1: .*ffn_in is missing"):
        layers(model)


def test_parametrized_linears_keep_their_names(make_model) -> None:
    model = make_model("bert")
    before = [*encoder_linears(model)]
    for linear in encoder_linears(model).values():
        torch.nn.utils.parametrizations.weight_norm(linear)
    assert [*encoder_linears(model)] == before


def test_the_room_is_a_name_of_the_package() -> None:
    import sparse_runtime

    assert sparse_runtime.compress.encoder_linears is encoder_linears
    assert "compress" in dir(sparse_runtime)
