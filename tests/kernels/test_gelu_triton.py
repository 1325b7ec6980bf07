"""GELU as Triton kernels compute it, against float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from sparse_runtime.kernels.linear.epilogue_triton import gelu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def gelu_kernel(x, y, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(y + at, gelu(tl.load(x + at)))


def test_gelu_is_exact_to_float32_on_both_sides() -> None:
    x = torch.linspace(-12, 12, 1 << 14, device=DEVICE)
    x[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])
    y = torch.empty_like(x)
    gelu_kernel[(1,)](x, y, len(x))
    wide = x.double().cpu()
    wanted = wide * torch.special.erfc(-wide / 2**0.5) / 2
    wanted[2] = 0.0  # the limit, where the product of infinity and zero is NaN
    torch.testing.assert_close(y.double().cpu(), wanted, rtol=1e-5, atol=1e-36, equal_nan=True)
    torch.testing.assert_close(y.double().cpu(), wanted, rtol=1e-7, atol=3e-7, equal_nan=True)
