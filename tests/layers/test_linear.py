"""The drop-in Linear: what it computes, what it refuses, and how it looks to other code."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_runtime as sr
from sparse_runtime.testing import (
    assert_close_to_oracle,
    linear_oracle,
    make_activations,
    make_packed,
    make_weight,
)

OUT, IN = 21, 43
# One of each structure and of each way to compute: quantized inputs, dequantized floats, floats.
KINDS: dict[str, dict[str, str]] = {
    "dense int8": {"structure": "dense"},
    "2:4 int8": {"structure": "2:4"},
    "block int4": {"structure": "block:4x1", "values": "int4"},
    "weight only": {"structure": "unstructured", "activations": "none"},
    "dense fp32": {"structure": "dense", "values": "fp32"},
    "2:4 bf16": {"structure": "2:4", "values": "bf16"},
}


def dense(bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    linear = nn.Linear(IN, OUT, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(make_weight((OUT, IN)))
        if bias:
            linear.bias.copy_(make_activations(1, OUT, seed=1)[0])
    return linear.to(dtype)


def packed_linear(kind: str = "dense int8", **arguments: Any) -> sr.Linear:
    return sr.Linear.from_dense(dense(), **KINDS[kind], **arguments)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_close_to_the_oracle_for_every_shape_of_input(kind: str, backend: str) -> None:
    layer = packed_linear(kind, backend=backend)
    stream = make_activations(24, IN)
    inputs = {
        "vector": stream[0],
        "matrix": stream,
        "3-D": stream.view(4, 6, IN),
        "4-D": stream.view(2, 3, 4, IN),
        "no tokens": stream[:0],
        "no tokens, 3-D": stream[:0].view(3, 0, IN),
        "not contiguous": stream.view(4, 6, IN).transpose(0, 1),
        "columns of a wider matrix": make_activations(5, IN + 7)[:, 3 : 3 + IN],
        "expanded": stream[:1].expand(5, IN),
    }
    for name, x in inputs.items():
        y = layer(x)
        assert y.shape == (*x.shape[:-1], OUT), name
        rows = x.reshape(-1, IN)
        oracle, baseline = linear_oracle(rows, layer.packed, layer.bias)
        assert_close_to_oracle(y.reshape(-1, OUT), oracle, baseline, name=name)


def test_fp32_dense_is_close_to_the_layer_it_came_from() -> None:
    linear, x = dense(), make_activations(7, IN)
    y = sr.Linear.from_dense(linear, values="fp32")(x)
    torch.testing.assert_close(y, linear(x), rtol=1e-6, atol=2e-6)


def test_the_source_layer_stays_as_it_is() -> None:
    linear = dense()
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    layer = sr.Linear.from_dense(linear, structure="2:4")
    assert torch.equal(linear.weight, weight)
    assert torch.equal(linear.bias, bias)
    assert linear.training and linear.weight.requires_grad
    assert layer.bias is not None
    assert layer.bias.data_ptr() != linear.bias.data_ptr()


def test_it_looks_like_a_linear() -> None:
    layer = packed_linear()
    assert (layer.in_features, layer.out_features) == (IN, OUT)
    assert isinstance(layer.bias, nn.Parameter)
    assert not layer.bias.requires_grad
    assert not layer.training
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert packed_linear_without_bias().bias is None
    assert repr(layer) == (
        "Linear(in_features=43, out_features=21, bias=True, structure=dense, values=int8, "
        "activations=dynamic uint8, runs=cpu.panels)"
    )


def packed_linear_without_bias() -> sr.Linear:
    return sr.Linear.from_dense(dense(bias=False))


def test_without_bias_nothing_is_added() -> None:
    layer = packed_linear_without_bias()
    assert torch.equal(layer(torch.zeros(2, IN)), torch.zeros(2, OUT))


@pytest.mark.parametrize("kind", KINDS)
def test_weight_is_a_fresh_dequantized_view(kind: str) -> None:
    layer = packed_linear(kind)
    x = make_activations(3, IN)
    before = layer(x)
    assert torch.equal(layer.weight, layer.packed.dequantize())
    layer.weight.zero_()
    assert torch.equal(layer(x), before)
    assert bool(layer.weight.any())


@pytest.mark.parametrize("value", [nn.Parameter(torch.ones(OUT, IN)), torch.ones(OUT, IN)])
def test_weight_cannot_be_set(value: Tensor) -> None:
    layer = packed_linear()
    with pytest.raises(AttributeError, match=r"read-only view.*Linear\.from_dense"):
        layer.weight = value


def test_two_to_four_pruning_is_logged_with_its_count(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sparse_runtime"):
        packed_linear("dense int8")
        assert not caplog.records
        layer = packed_linear("2:4 int8")
    kept = int((layer.weight != 0).sum())
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert f"pruned to 2:4 by magnitude: {OUT * IN - kept} of {OUT * IN}" in record.getMessage()


def test_explain_and_backend() -> None:
    assert "-> cpu.panels" in packed_linear().explain()
    reference = packed_linear(backend="reference")
    assert "-> reference" in reference.explain()
    assert "cpu.panels: backend 'reference' was requested" in reference.explain()
    with pytest.raises(ValueError, match="backend 'gpu'"):
        packed_linear(backend="gpu")


def test_explain_measures_when_asked() -> None:
    layer = packed_linear()
    assert "predicted" in layer.explain() and "measured" not in layer.explain()
    assert " us, measured " in layer.explain(measure=True)
    assert "measured" not in layer.explain()
    reference = packed_linear(backend="reference")
    assert reference.explain(measure=True) == reference.explain()
    on_meta = packed_linear().to("meta")
    assert on_meta.explain(measure=True) == on_meta.explain()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_input_comes_back_in_its_type(kind: str, dtype: torch.dtype) -> None:
    layer = packed_linear(kind)
    x = make_activations(6, IN, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    # The layer is prepared for float32: no input type makes it less exact than itself.
    precision = torch.float32 if dtype == torch.float64 else dtype
    oracle, _ = linear_oracle(x, layer.packed, layer.bias)
    _, baseline = linear_oracle(x.to(precision), layer.packed, layer.bias)
    assert_close_to_oracle(y.to(precision), oracle, baseline)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_types_nn_linear_gives(kind: str, target: torch.dtype) -> None:
    layer, linear = packed_linear(kind), dense()
    x = make_activations(6, IN)
    with torch.autocast("cpu", dtype=target), torch.no_grad():
        for source in (torch.float32, torch.bfloat16, torch.float16):
            assert layer(x.to(source)).dtype == linear(x.to(source)).dtype == target
        y = layer(x)
        assert layer(x.double()).dtype == torch.float64  # nn.Linear raises here
    oracle, _ = linear_oracle(x, layer.packed, layer.bias)
    _, baseline = linear_oracle(x.to(target), layer.packed, layer.bias)
    assert_close_to_oracle(y, oracle, baseline, multiple=4)
    with torch.autocast("cpu", enabled=False):
        assert layer(x).dtype == torch.float32


def test_forward_hooks_run() -> None:
    layer, x = packed_linear(), make_activations(2, IN)
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    y = layer(x)
    assert torch.equal(seen[0], y)
    handle.remove()
    assert torch.equal(layer(x), y)
    assert len(seen) == 1
    assert torch.equal(y, layer.forward(2 * x))


def test_a_bias_changed_in_place_counts_after_prepare() -> None:
    layer, x = packed_linear(), make_activations(2, IN)
    before = layer(x)
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.add_(1)
    layer.prepare()
    assert torch.allclose(layer(x), before + 1, atol=1e-5)


def test_a_bias_that_is_assigned_counts_at_once() -> None:
    layer, x = packed_linear(), make_activations(2, IN)
    assert layer.bias is not None
    expected = layer(x) + 1
    layer.bias = nn.Parameter(layer.bias + 1, requires_grad=False)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    layer.bias = None
    assert torch.equal(layer(x), sr.Linear(layer.packed)(x))
    with pytest.raises(ValueError, match=r"linear\.bias: expected floats \[21\]"):
        layer.bias = nn.Parameter(torch.zeros(7))
    assert layer.bias is None
    assert torch.equal(layer(x), sr.Linear(layer.packed)(x))


def test_from_a_packed_weight() -> None:
    packed = make_packed((OUT, IN), "2:4", values="int8")
    bias = torch.ones(OUT)
    layer = sr.Linear(packed, bias, name="ffn")
    x = make_activations(3, IN)
    torch.testing.assert_close(layer(x), sr.Linear(packed)(x) + 1)
    assert layer.explain().startswith("ffn: [21, 43] 2:4 int8")
    bias.zero_()
    assert layer.bias is not None
    assert torch.equal(layer.bias, torch.ones(OUT))
