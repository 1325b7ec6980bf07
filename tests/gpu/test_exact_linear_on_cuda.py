"""The "exact" kernels on a GPU, and NVRTC's there: what tests/cuda shows in the emulator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_runtime.kernels import cuda_loading
from sparse_runtime.kernels.cuda_nvrtc import RuntimeLibrary
from sparse_runtime.kernels.linear import linear_cuda
from sparse_runtime.kernels.linear.linear_cuda import SPLITS, TILES, MmaConfig, MmaWeight
from sparse_runtime.kernels.linear.operands import Epilogue, Quantized, Target
from sparse_runtime.kernels.linear.reference import (
    float_linear,
    integer_linear,
    quantize_rows_asymmetric,
)
from sparse_runtime.kernels.linear.tiles import Workspace

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or cuda_loading.not_launched() is not None,
    reason=f"hand-written kernels: {cuda_loading.not_launched() or 'no GPU'}",
)

DTYPES = (torch.int8, torch.bfloat16, torch.float16)
# Tokens, outputs, inputs: one of each; off every tile; inputs that end within a slab and within 16
# bytes; whole tiles; many tiles either way.
SHAPES = [(1, 1, 1), (9, 70, 65), (33, 40, 200), (128, 128, 64), (130, 257, 1024), (1000, 768, 768)]
DENSITIES = (0.0, 0.12, 1.0)  # no rest, in some slabs, in all


def make_weight(dtype: torch.dtype, density: float, outputs: int, inputs: int) -> Tensor:
    generator = torch.Generator().manual_seed(outputs + inputs)
    weight = torch.randint(-128, 128, (outputs, inputs), generator=generator)
    return (weight * (torch.rand(weight.shape, generator=generator) < density)).to(dtype).cuda()


def check(dtype: torch.dtype, density: float, shape: tuple[int, int, int], config: MmaConfig):
    """One product against the reference: integers to the last bit."""
    tokens, outputs, inputs = shape
    matrix = make_weight(dtype, density, outputs, inputs)
    weight: MmaWeight = linear_cuda.pack(matrix, "exact")
    rows = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens)).cuda()
    epilogue = Epilogue(bias=torch.randn(outputs, device="cuda"))
    x: Quantized | Tensor = rows.to(dtype)
    if dtype == torch.int8:
        q, scale, zero = quantize_rows_asymmetric(rows)
        stored = torch.full((tokens, -(-inputs // 16) * 16), 99, device="cuda").to(torch.int8)
        stored[:, :inputs] = q - 128
        zero = (zero - 128).int()
        x = Quantized(stored[:, :inputs], stored.stride(0), scale, zero, 1)
        scales, sums = torch.rand(outputs, device="cuda") * 0.01, matrix.sum(1, dtype=torch.int32)
        epilogue = epilogue._replace(weight_scale=scales, weight_sum=sums)
        expected = integer_linear(x.q, zero, scale, matrix, scales, epilogue.bias)
    else:
        expected = float_linear(x.double(), matrix.double(), epilogue.bias.double())
    partials, counters = linear_cuda.workspace_needs(tokens, weight, config)
    workspace = Workspace(
        torch.empty(partials, device="cuda"),
        torch.zeros(counters, dtype=torch.int32, device="cuda"),
    )
    y = torch.full((tokens, outputs), torch.nan, device="cuda")
    linear_cuda.linear(x, weight, epilogue, None, Target(y, outputs), "none", config, workspace)
    assert not workspace.counters.any()
    if dtype == torch.int8:
        assert torch.equal(y, expected)
    else:
        bound = 3e-6 * inputs**0.5 * max(1.0, float(expected.abs().max()))
        assert float((y - expected).abs().max()) <= bound


@pytest.mark.parametrize("split_k", SPLITS)
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_equal_the_reference(dtype: torch.dtype, tile, split_k: int) -> None:
    for shape in SHAPES:
        for density in DENSITIES:
            check(dtype, density, shape, MmaConfig(*tile, split_k))


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_products_in_splits(dtype: torch.dtype) -> None:
    check(dtype, 0.12, (33, 70, 200), MmaConfig(16, 64, 2))


@pytest.mark.parametrize("shape", [(1, 1), (17, 66), (768, 3072)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packing_on_the_gpu_equals_packing_on_the_host(dtype: torch.dtype, shape) -> None:
    matrix = make_weight(dtype, 0.12, *shape)
    packed, known = linear_cuda.pack(matrix, "exact"), linear_cuda.pack(matrix.cpu(), "exact")
    for name in ("packed", "rest", "rest_places"):
        assert torch.equal(getattr(packed, name).cpu(), getattr(known, name))
    assert known.operand.extra == packed.operand.extra
    back = linear_cuda.library().unpack_exact(known.operand, dtype, shape)
    assert torch.equal(back, matrix.cpu())


@pytest.mark.sanitize
def test_nvrtc_makes_the_same_library() -> None:
    try:
        compiled = RuntimeLibrary()
    except (OSError, RuntimeError) as error:
        pytest.skip(str(error))
    matrix = make_weight(torch.int8, 0.12, 70, 132)
    packed = compiled.pack(matrix, "dense")
    assert torch.equal(packed, linear_cuda.library().pack(matrix, "dense"))
    assert torch.equal(compiled.unpack(packed, "dense", torch.int8, (70, 132)), matrix)
    exact, known = compiled.pack_exact(matrix), linear_cuda.pack(matrix, "exact").operand
    assert all(map(torch.equal, exact, known))
