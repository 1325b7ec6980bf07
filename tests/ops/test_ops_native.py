"""The custom operator that torch.compile and torch.export see, and the eager call beside it."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch

from sparse_runtime.ops import LinearWeight, choose
from sparse_runtime.ops.cpu_panels import PanelLinear
from sparse_runtime.ops.prepared_op import prepared_linear
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.testing import make_activations, make_packed

OUT, IN = 21, 43
STATIC = ActivationSpec("static", "uint8", 0.02, 131)
KINDS = {
    "dynamic": ("int8", "dynamic"),
    "static": ("int8", STATIC),
    "floats": ("fp32", "none"),
}


def prepared(kind: str = "dynamic") -> PanelLinear:
    values, activations = KINDS[kind]
    packed = make_packed((OUT, IN), values=values, activations=activations)
    bias = make_activations(1, OUT, seed=1)[0]
    layer = choose([LinearWeight("layer", packed, bias)], backend="cpu").prepare()
    assert isinstance(layer, PanelLinear)
    return layer


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, tokens: int) -> None:
    layer = prepared(kind)
    x, residual = make_activations(tokens, IN), make_activations(tokens, OUT)
    for operands in ((None, None), ("gelu", residual)):
        torch.library.opcheck(prepared_linear, (x, layer.key, OUT, *operands))


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_gives_what_the_eager_call_gives(kind: str) -> None:
    layer = prepared(kind)
    x, residual = make_activations(7, IN), make_activations(7, OUT)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for activation in (None, "relu", "gelu", "silu"):
        assert torch.equal(compiled(x, activation, residual), layer(x, activation, residual))


def test_a_tracer_records_the_operator_and_no_constant() -> None:
    layer = prepared()
    x = make_activations(7, IN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; sizes become constants
        traced = torch.jit.trace(layer, (x,))
    assert torch.equal(traced(2 * x), layer(2 * x))


def test_a_layer_that_is_gone_is_named() -> None:
    layer = prepared()
    key = layer.key
    del layer
    gc.collect()
    with pytest.raises(RuntimeError, match=f"layer {key} is not alive in this process"):
        prepared_linear(torch.ones(3, IN), key, OUT, None, None)


def test_memory_of_another_device_is_never_addressed() -> None:
    layer = prepared()
    with pytest.raises(ValueError, match="read CPU memory, got a tensor on meta"):
        layer(torch.ones(3, IN, device="meta"))
