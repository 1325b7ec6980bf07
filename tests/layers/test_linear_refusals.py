"""What a packed Linear refuses: inputs, modes, parts, and layers that are more than one."""

from __future__ import annotations

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
from sparse_runtime.testing import make_packed

OUT, IN = 21, 43
# Integers, with positions beside them, and floats.
KINDS: dict[str, dict[str, str]] = {
    "dense int8": {"structure": "dense"},
    "2:4 int8": {"structure": "2:4"},
    "dense fp32": {"structure": "dense", "values": "fp32"},
}


def packed_linear(**arguments: Any) -> sr.Linear:
    return sr.Linear.from_dense(nn.Linear(IN, OUT), **arguments)


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
        packed_linear(**KINDS[kind])(x)


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
        packed_linear(**KINDS[kind])(x)


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
    layer = packed_linear(**KINDS[kind])
    tensor = getattr(layer, name)
    tensor.data = change(tensor.data)
    with pytest.raises(ValueError, match=f"linear: {message}"):
        layer.prepare()
    with pytest.raises(RuntimeError, match="not prepared"):
        layer(torch.ones(1, IN))


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
    masked = nn.Linear(IN, OUT)
    prune.l1_unstructured(masked, "weight", 0.5)
    parametrized, patched = weight_norm(nn.Linear(IN, OUT)), nn.Linear(IN, OUT)
    patched.forward = lambda input: torch.zeros(1)  # type: ignore[method-assign]
    refused: list[tuple[nn.Module, str]] = [
        (nn.Conv1d(1, 1, 1), r"expected an nn.Linear, got torch\.nn\.modules\.conv\.Conv1d"),
        (packed_linear(), r"expected an nn.Linear, got sparse_runtime\.layers\.linear\.Linear"),
        (OwnForward(IN, OUT), "OwnForward has a forward of its own"),
        (patched, "Linear has a forward of its own, set on this layer alone"),
        (masked, r"keeps weight_mask, weight_orig .*torch\.nn\.utils\.prune\.remove"),
        (parametrized, "keeps parametrizations"),
        (nn.LazyLinear(OUT), "the weight has no values yet"),
        (nn.Linear(IN, OUT).to("meta"), "the weight has no values yet"),
    ]
    for module, message in refused:
        with pytest.raises(TypeError, match=message):
            sr.Linear.from_dense(module)  # type: ignore[arg-type]
    prune.remove(masked, "weight")
    assert sr.Linear.from_dense(masked).spec.structure.kind == "unstructured"


def test_a_weight_that_is_not_finite_is_refused() -> None:
    linear = nn.Linear(IN, OUT)
    linear.weight.data[3, 4] = torch.inf
    with pytest.raises(ValueError, match=r"linear: weight\[3, 4\] is inf"):
        sr.Linear.from_dense(linear)
