"""The drop-in Linear: what it computes, what it refuses, and how it looks to other code."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import sparse_runtime as sr
from sparse_runtime.formats import PackedWeight
from sparse_runtime.ops import native
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


def test_an_explicit_backend_that_is_not_there_fails_loudly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "_C", None)
    with pytest.raises(RuntimeError, match=r"cpu\.panels: sparse_runtime\._C is not built"):
        packed_linear(backend="cpu")
    assert "-> reference" in packed_linear().explain()


def test_training_mode_is_refused() -> None:
    layer = packed_linear().train()
    with pytest.raises(RuntimeError, match=r"in training mode; call eval\(\)"):
        layer(torch.ones(2, IN))
    assert layer.eval()(torch.ones(2, IN)).shape == (2, OUT)


def test_gradients_are_refused() -> None:
    layer = packed_linear()
    x = torch.ones(2, IN, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no gradient.*torch\.inference_mode\(\)"):
        layer(x)
    with torch.no_grad():
        expected = layer(x)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x.detach()), expected)
    layer.requires_grad_(True)  # asks for the bias' gradient
    with pytest.raises(RuntimeError, match="input or bias requires one"):
        layer(torch.ones(2, IN))


def test_derivatives_in_forward_mode_are_refused() -> None:
    layer, x = packed_linear(), torch.ones(2, IN)
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match=r"no derivative.*carries a tangent"):
            layer(forward_ad.make_dual(x, x))
        assert torch.equal(layer(x), layer(x.clone()))
    with pytest.raises(RuntimeError, match=r"carries a tangent \(torch\.func\.jvp"):
        torch.func.jvp(layer, (x,), (x,))


UNUSUAL_INPUTS: dict[str, tuple[Any, type[Exception], str]] = {
    "array": (np.ones((2, IN)), TypeError, "expected input as a torch.Tensor, got ndarray"),
    "list": ([[1.0] * IN], TypeError, "got list"),
    "None": (None, TypeError, "got NoneType"),
    "sparse": (torch.ones(2, IN).to_sparse(), RuntimeError, r"got torch.sparse_coo; .*to_dense"),
    "mkldnn": (torch.ones(2, IN).to_mkldnn(), RuntimeError, "got torch._mkldnn"),
    "nested": (
        torch.nested.nested_tensor([torch.ones(2, IN), torch.ones(3, IN)], layout=torch.jagged),
        RuntimeError,
        "got a nested tensor; call the layer on input.values",
    ),
}


@pytest.mark.parametrize("kind", ["dense int8", "dense fp32"])
@pytest.mark.parametrize("name", UNUSUAL_INPUTS)
def test_inputs_that_are_no_plain_tensors_are_named(name: str, kind: str) -> None:
    x, error, message = UNUSUAL_INPUTS[name]
    with pytest.raises(error, match=f"linear: .*{message}"):
        packed_linear(kind)(x)


def test_vmap_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"torch\.func\.vmap .* on the whole batch"):
        torch.func.vmap(packed_linear())(torch.ones(3, 2, IN))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, IN + 1), r"expected input \[..., 43\] \(in_features\), got \[2, 44\]"),
        (torch.ones(5), r"got \[5\]"),
        (torch.tensor(1.0), r"got \[\]"),
        (torch.ones(2, IN, dtype=torch.int64), "got torch.int64"),
        (torch.ones(2, IN, dtype=torch.complex64), "got torch.complex64"),
        (torch.ones(2, IN, device="meta"), "expected input on cpu, got meta"),
    ],
)
@pytest.mark.parametrize("kind", ["dense int8", "dense fp32"])
def test_inputs_that_do_not_fit_are_refused_like_by_nn_linear(
    kind: str, x: Tensor, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        packed_linear(kind)(x)


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


@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        ("dense int8", "bias", lambda t: t[:7], r"bias: expected floats \[21\]"),
        ("dense int8", "scales", lambda t: t[:1], r"scales: expected torch.float32 \[21\]"),
        ("dense int8", "values", lambda t: t[:3], r"values: expected torch.int8 \[21, 43\]"),
        ("2:4 int8", "positions", torch.zeros_like, "positions: expected ascending positions"),
        ("dense fp32", "values", lambda t: t[:3], r"values: expected torch.float32 \[21, 43\]"),
    ],
)
def test_tensors_put_in_later_are_checked_before_kernels_read_them(
    kind: str, name: str, change: Any, message: str
) -> None:
    layer = packed_linear(kind)
    tensor = getattr(layer, name)
    tensor.data = change(tensor.data)
    with pytest.raises(ValueError, match=f"linear: {message}"):
        layer.prepare()
    with pytest.raises(RuntimeError, match="not prepared"):
        layer(torch.ones(1, IN))


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


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"packed": torch.ones(OUT, IN)}, TypeError, "expected a PackedWeight, got Tensor"),
        (
            {"bias": torch.ones(OUT + 1)},
            ValueError,
            r"bias: expected floats \[21\], one for each row of the weight, got .*\[22\]",
        ),
        ({"bias": "zeros"}, TypeError, "bias: expected a Tensor or None, got str"),
        ({"bias": False}, TypeError, "bias: expected a Tensor or None, got bool"),
        ({"bias": torch.ones(OUT, dtype=torch.int32)}, ValueError, "got torch.int32"),
        ({"bias": torch.full((OUT,), torch.nan)}, ValueError, "bias: expected finite numbers"),
        ({"dtype": torch.int8}, ValueError, "dtype torch.int8: expected one of torch.float32"),
        ({"backend": "gpu"}, ValueError, "backend 'gpu'"),
    ],
)
def test_bad_parts_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    packed: PackedWeight = make_packed((OUT, IN), values="int8")
    with pytest.raises(error, match=message):
        sr.Linear(**{"packed": packed, **arguments})


def test_a_packed_weight_is_validated() -> None:
    packed = make_packed((OUT, IN), "2:4", values="int8")
    packed.tensors()["positions"].fill_(0)
    with pytest.raises(ValueError, match="positions"):
        sr.Linear(packed)


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def test_layers_that_are_more_than_a_linear_are_refused() -> None:
    masked = dense()
    prune.l1_unstructured(masked, "weight", 0.5)
    parametrized, patched = weight_norm(dense()), dense()
    patched.forward = lambda input: torch.zeros(1)  # type: ignore[method-assign]
    refused: list[tuple[nn.Module, str]] = [
        (nn.Conv1d(1, 1, 1), r"expected an nn.Linear, got torch\.nn\.modules\.conv\.Conv1d"),
        (packed_linear(), r"expected an nn.Linear, got sparse_runtime\.layers\.linear\.Linear"),
        (OwnForward(IN, OUT), "OwnForward has a forward of its own"),
        (patched, "Linear has a forward of its own, set on this layer alone"),
        (masked, r"keeps weight_mask, weight_orig .*torch\.nn\.utils\.prune\.remove"),
        (parametrized, "keeps parametrizations"),
        (nn.LazyLinear(OUT), "the weight has no values yet"),
        (dense().to("meta"), "the weight has no values yet"),
    ]
    for module, message in refused:
        with pytest.raises(TypeError, match=message):
            sr.Linear.from_dense(module)  # type: ignore[arg-type]
    prune.remove(masked, "weight")
    assert sr.Linear.from_dense(masked).spec.structure.kind == "unstructured"


def test_a_weight_that_is_not_finite_is_refused() -> None:
    linear = dense()
    linear.weight.data[3, 4] = torch.inf
    with pytest.raises(ValueError, match=r"linear: weight\[3, 4\] is inf"):
        sr.Linear.from_dense(linear)
