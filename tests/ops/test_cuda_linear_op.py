"""The CUDA backend's linear under torch.compile, torch.export's rules and autocast, interpreted."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

import sparse_runtime as sr
from sparse_runtime.ops import LinearRequest, LinearWeight
from sparse_runtime.ops.cuda.linear import CudaLinear
from sparse_runtime.ops.prepared_op import prepared_linear
from sparse_runtime.testing import make_activations, make_packed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OUT, IN = 21, 43


def prepared(activations: str = "dynamic", dtype: torch.dtype = torch.float32) -> CudaLinear:
    packed = make_packed((OUT, IN), values="int8", activations=activations).to(DEVICE)
    return CudaLinear(LinearRequest((LinearWeight("layer", packed),), DEVICE, dtype))


def module(**options: object) -> sr.Linear:
    packed = make_packed((OUT, IN), "2:4", values="int8").to(DEVICE)
    return sr.Linear(packed, torch.ones(OUT), backend="cuda", **options)  # type: ignore[arg-type]


def inputs(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return make_activations(tokens, IN, dtype=dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activations", ["dynamic", "none"])
def test_the_operator_keeps_its_promises(activations: str, dtype: torch.dtype) -> None:
    layer = prepared(activations, dtype)
    residual = make_activations(5, OUT, dtype=dtype).to(DEVICE)
    for activation, added in ((None, None), ("gelu", residual)):
        operands = (inputs(5, dtype), layer.key, OUT, activation, added)
        torch.library.opcheck(prepared_linear, operands)
        assert torch.equal(prepared_linear(*operands), layer(inputs(5, dtype), activation, added))


def test_the_operator_names_a_layer_that_is_gone() -> None:
    layer = prepared()
    key = layer.key
    del layer
    gc.collect()
    with pytest.raises(RuntimeError, match=f"layer {key} is not alive in this process"):
        prepared_linear(inputs(2), key, OUT, None, None)


def test_one_graph_without_breaks_serves_every_number_of_tokens() -> None:
    model = nn.Sequential(module(), nn.GELU()).eval()
    # Triton is not asked: the interpreter runs on the CPU.
    backend = "inductor" if DEVICE.type == "cuda" else "aot_eager"
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for tokens in (3, 5, 17):
            x = inputs(tokens)
            torch.testing.assert_close(compiled(x), model(x))
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_autocast_gives_its_own_type() -> None:
    layer, x = module(), inputs(4)
    with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer(x).bfloat16())


def test_a_layer_made_in_inference_mode_runs_outside_of_it() -> None:
    with torch.inference_mode():
        layer = module()
        inside = layer(inputs(3))
    with torch.no_grad():
        assert torch.equal(layer(inputs(3)), inside)


def test_a_layer_survives_its_state_and_a_change_of_type() -> None:
    layer = module()
    x = inputs(6)
    again = module()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    half = layer.to(torch.bfloat16)
    assert isinstance(half.prepared, CudaLinear) and half.prepared.dtype == torch.bfloat16
    assert half(x.bfloat16()).dtype == torch.bfloat16
