"""The custom operator that torch.compile and torch.export see, and the eager call beside it."""

from __future__ import annotations

import warnings

import pytest
import torch

from sparse_runtime.ops import LinearWeight, choose
from sparse_runtime.ops.cpu_int8 import CpuInt8Linear, int8_linear_op, pack_weight, run_int8_linear
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.testing import make_activations, make_packed

OUT, IN = 21, 43
STATIC = ActivationSpec("static", "uint8", 0.02, 131)


def prepared(activations: str | ActivationSpec = "dynamic") -> CpuInt8Linear:
    packed = make_packed((OUT, IN), values="int8", activations=activations)
    bias = make_activations(1, OUT, seed=1)[0]
    layer = choose([LinearWeight("layer", packed, bias)], backend="cpu").prepare()
    assert isinstance(layer, CpuInt8Linear)
    return layer


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("activations", ["dynamic", STATIC])
def test_opcheck(activations: str | ActivationSpec, tokens: int) -> None:
    layer = prepared(activations)
    act = layer.activations
    weight = (layer.packed, layer.row_sums, layer.weight_scale)
    fixed = (act.scheme == "static", act.dtype, act.scale, act.zero_point)
    x, residual = make_activations(tokens, IN), make_activations(tokens, OUT)
    for operands in ((None, None, None), (layer.bias, "gelu", residual)):
        torch.library.opcheck(int8_linear_op, (x, *weight, *operands, *fixed))


@pytest.mark.parametrize("activations", ["dynamic", STATIC])
def test_the_operator_gives_what_the_eager_call_gives(activations: str | ActivationSpec) -> None:
    layer = prepared(activations)
    x, residual = make_activations(7, IN), make_activations(7, OUT)
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


def test_operands_that_would_read_behind_the_weight_are_refused() -> None:
    packed, row_sums = pack_weight(torch.ones(OUT, IN, dtype=torch.int8))
    scale, act = torch.ones(OUT), ActivationSpec()
    x = torch.ones(3, IN + 64)
    with pytest.raises(ValueError, match=r"x \[3, 107\] does not fit a weight with 21 outputs"):
        run_int8_linear(x, packed, row_sums, scale, None, None, None, act)


def test_memory_of_another_device_is_never_addressed() -> None:
    layer = prepared()
    with pytest.raises(ValueError, match="read CPU memory, got a tensor on meta"):
        layer(torch.ones(3, IN, device="meta"))
