"""Encoders whose channels change places for sparse tensor cores compute what they did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime import SparseModel
from sparse_runtime.ops.cuda.backend import CudaBackend
from sparse_runtime.ops.types import LinearWeight

pytestmark = [
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="runs in Triton's interpreter"),
]


def run(packed: Any, ids: Tensor) -> Tensor:
    return SparseModel.from_packed(packed, backend="cuda")(ids).last_hidden_state


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet"])
@pytest.mark.parametrize("values", ["int8", "fp32"])
def test_outputs_stay_the_same(
    family: str, values: str, make_reference: Any, make_packed: Any, monkeypatch: Any
) -> None:
    packed = make_packed(make_reference(family, "Model"), "unstructured", values, sparsity=0.5)
    ids = torch.arange(4, 11).unsqueeze(0)
    expected = run(packed, ids)
    asked: list[tuple[int, int | None]] = []

    def turned(self: CudaBackend, reader: LinearWeight, unit: int | None) -> Tensor:
        inputs = reader.packed.spec.shape[1]
        asked.append((inputs, unit))
        return torch.cat([part.flip(0) for part in torch.arange(inputs).split(unit or inputs)])

    monkeypatch.setattr(CudaBackend, "input_order", turned)
    got = run(packed, ids)
    assert asked == [(32, 8), (48, None)] * 2  # values within a head, the feed-forward size
    if values == "int8":
        assert torch.equal(got, expected)
    else:  # sums in another order
        assert float((got - expected).abs().max()) < 2e-6 * float(expected.abs().max())
        assert not torch.equal(got, expected)
