"""The reference backend on a GPU gives what it gives on the CPU. Run by benchmarks/gpu_check.sh."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_runtime import Linear
from sparse_runtime.formats import compress
from sparse_runtime.ops import LinearWeight, choose

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device, or a torch built without CUDA"
)

STRUCTURES = {"dense": None, "unstructured": "unstructured@0.9", "2:4": "2:4", "block:4x1": None}


def inputs(tokens: int, features: int) -> Tensor:
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("values", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("tokens", [0, 1, 65])  # empty, one row, off any tile
def test_linear_on_cuda_equals_linear_on_cpu(structure: str, values: str, tokens: int) -> None:
    weight = torch.randn(70, 50, generator=torch.Generator().manual_seed(0))  # off any tile
    packed, _ = compress(weight, structure=structure, values=values, prune=STRUCTURES[structure])
    bias = torch.linspace(-1, 1, 70)
    layer = Linear(packed, bias, backend="reference")
    x = inputs(tokens, 50)
    expected = layer(x)
    moved = layer.to("cuda")
    assert moved.packed.values.is_cuda
    # The integer sums are exact on both; only float32 rounding may differ.
    torch.testing.assert_close(moved(x.cuda()).cpu(), expected, rtol=2e-6, atol=2e-5)


def test_auto_on_cuda_takes_what_runs_there_and_says_why_not_the_rest() -> None:
    packed, _ = compress(torch.eye(16))
    decision = choose([LinearWeight("layer", packed)], device="cuda")
    assert decision.candidate.backend != "cpu"
    assert "the layer is on cuda" in decision.explain()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_keep_their_type(dtype: torch.dtype) -> None:
    packed, _ = compress(torch.randn(8, 16))
    y = Linear(packed).to("cuda")(inputs(3, 16).to("cuda", dtype))
    assert (y.dtype, y.device.type) == (dtype, "cuda")
