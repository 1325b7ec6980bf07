"""What a call costs beside the product, and that the output's memory is what C++ writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch import nn

import sparse_runtime as sr
from sparse_runtime.ops import native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


def microseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(500):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * median(times)


def test_a_tiny_layer_costs_little_more_than_nn_linear() -> None:
    # 32 x 32: the product itself takes less than a microsecond. Measured 5 over nn.Linear; the
    # limit holds off what costs tens: the dispatcher's custom operator, a team of threads.
    dense, x = nn.Linear(32, 32), torch.randn(1, 32)
    layer = sr.Linear.from_dense(dense)
    with torch.inference_mode():
        assert microseconds(lambda: layer(x)) < microseconds(lambda: dense(x)) + 50


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_is_not_the_outputs(dtype: torch.dtype) -> None:
    # The kernel writes float32: a buffer of the default type would be too short, or misread.
    layer, x = sr.Linear.from_dense(nn.Linear(64, 300)), torch.randn(70, 64)
    expected = layer(x)
    torch.set_default_dtype(dtype)
    try:
        found = layer(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("tokens", [1, 16, 17, 70])  # one thread up to one vector, then a team
def test_threads_do_not_change_bits(tokens: int) -> None:
    # 520 x 300: more columns than one task transposes, on both sides of the product.
    layer, x = sr.Linear.from_dense(nn.Linear(300, 520)), torch.randn(tokens, 300)
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            outputs.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])
