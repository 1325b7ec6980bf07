"""cuSPARSELt's variant, with stand-ins for releases that can and cannot turn their results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.kernels.linear.operands import Target
from sparse_runtime.ops import LinearRequest, LinearWeight
from sparse_runtime.ops.cuda import variants
from sparse_runtime.ops.cuda.stacked import stack_layers
from sparse_runtime.ops.cuda.trial import _made_up_input
from sparse_runtime.ops.cuda.workspaces import workspace_for
from sparse_runtime.testing import make_packed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    variants._cusparselt_turns.cache_clear()
    yield
    variants._cusparselt_turns.cache_clear()


@pytest.mark.parametrize("turns", [True, False])
def test_results_lie_in_rows_whatever_the_release_can(
    turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    def sparse_mm(
        matrix: Tensor, x: Tensor, *, out_dtype: torch.dtype, transpose_result: bool
    ) -> Tensor:
        calls.append(transpose_result)
        if transpose_result and not turns:
            raise RuntimeError("CUDA error: operation not supported when calling cusparseLt")
        product = (matrix.int() @ x.int()).to(out_dtype)
        return product.t().contiguous() if transpose_result else product

    monkeypatch.setattr(torch, "_cslt_compress", lambda matrix: matrix)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", sparse_mm)
    packed = make_packed((32, 64), "2:4", values="int8")
    request = LinearRequest((LinearWeight("layer", packed),), CPU, torch.float32)
    layers = stack_layers(request)
    first, second = (variants.Cusparselt(layers.matrix) for _ in range(2))
    assert calls == [True]  # once, while a weight is packed
    x: Any = _made_up_input(layers, 5)
    for variant in (first, second):
        y = torch.empty(5, 32)
        space = workspace_for(CPU, *variant.workspace_needs(5))
        variant.launch(x, layers.epilogue, None, Target(floats=y, floats_stride=32), "none", space)
        dense = variants.Cublas(layers.matrix)
        expected = torch.empty_like(y)
        space = workspace_for(CPU, *dense.workspace_needs(5))
        target = Target(floats=expected, floats_stride=32)
        dense.launch(x, layers.epilogue, None, target, "none", space)
        assert torch.equal(y, expected)
    assert calls[1:] == [turns, turns]
