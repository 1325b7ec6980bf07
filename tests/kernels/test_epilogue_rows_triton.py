"""What follows a library's product, as a kernel of its own, against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.kernels.linear.epilogue_rows_triton import epilogue_rows
from sparse_runtime.kernels.linear.operands import SCHEMES, Epilogue, Quantized, Target
from sparse_runtime.kernels.linear.reference import (
    integer_linear,
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_rows_full_range,
    quantize_static,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, OUTPUTS, INPUTS = 5, 37, 70  # off every block; rows of outputs and inputs end within one
STATIC = (0.05, -3, -120, 119)


def integers(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8).to(DEVICE)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.sanitize
@pytest.mark.parametrize("scheme", SCHEMES)
def test_integers_end_as_the_references(scheme: str) -> None:
    """Zero points on both sides, so that rows of inputs are summed; bias and residual."""
    q, weight, zero = (
        integers(1, TOKENS, INPUTS),
        integers(2, OUTPUTS, INPUTS),
        integers(3, OUTPUTS),
    )
    x_scale, x_zero = normal(4, TOKENS).abs(), integers(5, TOKENS).int()
    scale, bias, residual = normal(6, OUTPUTS).abs() / 99, normal(7, OUTPUTS), normal(8, TOKENS, 40)
    sums = weight.int().sum(1) - INPUTS * zero.int()
    epilogue = Epilogue(
        scale, sums.int(), zero.int(), bias, residual=residual, residual_stride=residual.stride(0)
    )
    floats = torch.full((TOKENS, OUTPUTS + 2), 7.0, device=DEVICE)
    static = scheme == "static"
    target = Target(
        floats,
        floats.stride(0),
        None if scheme == "none" else torch.zeros_like(floats, dtype=torch.int8),
        floats.stride(0),
        torch.tensor(STATIC[:1], device=DEVICE) if static else torch.zeros(TOKENS, device=DEVICE),
        torch.full((1 if static else TOKENS,), STATIC[1], dtype=torch.int32, device=DEVICE)
        if scheme in ("static", "asymmetric")
        else None,
        *STATIC[2:],
    )
    acc = (q.double() @ weight.double().T).int()
    x = Quantized(q, q.stride(0), x_scale, x_zero, 1)
    epilogue_rows(acc, x, epilogue, "relu", target, scheme)

    y = integer_linear(q, x_zero, x_scale, weight, scale, bias, weight_zero_point=zero.int())
    y = y.relu() + residual[:, :OUTPUTS]
    assert torch.equal(floats[:, :OUTPUTS], y) and (floats[:, OUTPUTS:] == 7).all()
    if scheme == "none":
        return
    assert target.q is not None
    found = target.q[:, :OUTPUTS].int()
    if static:
        assert torch.equal(found, quantize_static(y, *STATIC))
    elif scheme == "asymmetric":
        expected, scales, zeros = quantize_rows_asymmetric(y)
        assert torch.equal(found, expected.int() - 128) and torch.equal(target.scale, scales)
        assert torch.equal(target.zero, zeros - 128)
    else:
        quantize = quantize_rows if scheme == "symmetric" else quantize_rows_full_range
        expected, scales = quantize(y)
        assert torch.equal(found, expected.int()) and torch.equal(target.scale, scales)
