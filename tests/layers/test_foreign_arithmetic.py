"""Layers with zero points, groups and requantized outputs, as modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_runtime import Linear
from sparse_runtime.formats import PackedWeight, pack
from sparse_runtime.spec import ActivationSpec, LinearSpec, Structure, ValueSpec

STATIC = ActivationSpec("static", "uint8", 0.02, 131)


def packed(scales: str, outputs: ActivationSpec | None, *, inputs: int = 7) -> PackedWeight:
    values = ValueSpec.parse("int8", scales, zero_points=True)
    activations = None if outputs is None else STATIC
    spec = LinearSpec((5, inputs), Structure("dense"), values, activations, outputs)
    generator = torch.Generator().manual_seed(0)
    weight, zeros = (
        torch.randint(-128, 128, size, generator=generator).to(torch.int8)
        for size in ((5, inputs), (spec.scale_count,))
    )
    return pack(weight, spec, torch.rand(spec.scale_count, generator=generator) / 50, zeros)


# A weight-only layer in groups with a short last one; a requantizing one; one input alone.
CASES = [
    packed("group:3", None),
    packed("row", ActivationSpec("static", "int8", 0.05, -3)),
    packed("tensor", ActivationSpec("static", "uint8", 0.05, 100), inputs=1),
]


@pytest.mark.parametrize("weight", CASES, ids=["group", "outputs", "one input"])
def test_a_state_dict_brings_everything_back(weight: PackedWeight) -> None:
    bias, x = torch.linspace(-1, 1, 5), torch.randn(4, weight.spec.shape[1])
    layer = Linear(weight, bias)
    state = layer.state_dict()
    assert torch.equal(state["zero_points"], weight.zero_points)
    # The layer that loads has another description; it takes the state dict's.
    other = Linear.from_dense(nn.Linear(weight.spec.shape[1], 5))
    other.load_state_dict(state)
    assert other.spec == weight.spec
    assert torch.equal(other(x), layer(x))
    assert torch.equal(other.weight, weight.dequantize())
    del state["zero_points"]
    with pytest.raises(RuntimeError, match="zero_points"):
        other.load_state_dict(state)


def test_outputs_lie_on_the_steps_of_their_quantizer() -> None:
    weight = CASES[1]
    assert weight.spec.outputs is not None
    y = Linear(weight, torch.linspace(-1, 1, 5))(torch.randn(64, 7))
    steps = y / weight.spec.outputs.scale
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert float(steps.min()) >= -125
    assert float(steps.max()) <= 130


def test_integers_in_groups_are_explained_as_left_to_the_reference() -> None:
    layer = Linear.from_dense(nn.Linear(12, 4), scales="group:4")
    text = layer.explain()
    assert "-> reference" in text
    assert "cpu.panels: sums whole rows of integers, the scales are group:4" in text
    x = torch.randn(3, 12)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias, rtol=0.05, atol=0.05)
    floats = Linear.from_dense(nn.Linear(12, 4), scales="group:4", activations="none")
    assert "-> cpu.panels" in floats.explain()
