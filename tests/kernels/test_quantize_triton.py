"""Rows quantized by Triton functions equal the reference to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from sparse_runtime.kernels.linear.operands import Target
from sparse_runtime.kernels.linear.reference import (
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_rows_full_range,
    quantize_static,
)
from sparse_runtime.kernels.quantize.quantize_triton import quantize_static as quantize_values
from sparse_runtime.kernels.quantize.target_triton import finish_rows, store_rows, store_tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def rows_kernel(
    x, tokens, features, target, SCHEME: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < tokens)[:, None] & (columns < features)[None, :]
    y = tl.load(x + rows[:, None] * features + columns[None, :], mask=inside, other=0.0)
    store_rows(y.to(tl.float32), rows, columns, tokens, features, target, SCHEME)


@triton.jit
def tiles_kernel(
    x, tokens, features, target, SCHEME: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < tokens)[:, None] & (columns < features)[None, :]
    y = tl.load(x + rows[:, None] * features + columns[None, :], mask=inside, other=0.0)
    store_tile(y.to(tl.float32), rows, columns, tokens, features, target, SCHEME)
    block, arrivals = tl.program_id(0), tl.num_programs(1)
    finish_rows(block, arrivals, rows, tokens, features, target, SCHEME, COLUMNS)


def hard_rows(tokens: int, features: int) -> Tensor:
    """Random rows, and after them: zeros, -0.0, one sign, ties, tiny, huge, NaN, infinity."""
    x = torch.randn(tokens, features, generator=torch.Generator().manual_seed(tokens))
    special = torch.zeros(9, features)
    special[1] = -0.0
    special[2] = x[0].abs()
    special[3] = -x[0].abs()
    special[4] = torch.arange(features) % 255 - 127 + 0.5
    special[5] = x[0] * 1e-42  # subnormal
    special[6] = x[0] * 1e38
    special[7, features // 2] = torch.nan
    special[8, features // 2] = -torch.inf
    return torch.cat([x, special])


def reference(x: Tensor, scheme: str) -> tuple[Tensor, Tensor, Tensor]:
    if scheme == "asymmetric":
        q, scale, zero = quantize_rows_asymmetric(x)
        return (q - 128).to(torch.int8), scale, zero - 128
    q, scale = (quantize_rows if scheme == "symmetric" else quantize_rows_full_range)(x)
    return q, scale, torch.zeros(len(x), dtype=torch.int32)


@pytest.mark.parametrize("in_tiles", [False, True])
@pytest.mark.parametrize("scheme", ["symmetric", "full_range", "asymmetric"])
@pytest.mark.parametrize("features", [1, 16, 50])  # one, a whole tile, off any tile
def test_dynamic_rows_equal_the_reference(scheme: str, features: int, in_tiles: bool) -> None:
    x = hard_rows(10, features).to(DEVICE)
    tokens = len(x)
    target = Target(
        floats=torch.full((tokens, features), 7.0, device=DEVICE),
        floats_stride=features,
        q=torch.full((tokens, features + 3), 99, dtype=torch.int8, device=DEVICE),
        q_stride=features + 3,
        scale=torch.full((tokens,), 7.0, device=DEVICE),
        zero=torch.full((tokens,), 7, dtype=torch.int32, device=DEVICE),
        ranges=torch.zeros(2, tokens, dtype=torch.int32, device=DEVICE),
        counters=torch.zeros(8, dtype=torch.int32, device=DEVICE),
    )
    if in_tiles:
        grid = (triton.cdiv(tokens, 4), triton.cdiv(features, 16))
        tiles_kernel[grid](x, tokens, features, target, scheme, 4, 16, enable_fp_fusion=False)
    else:
        grid = (triton.cdiv(tokens, 4),)
        rows_kernel[grid](x, tokens, features, target, scheme, 4, 64, enable_fp_fusion=False)
    q, scale, zero = reference(x.cpu(), scheme)
    torch.testing.assert_close(target.floats.cpu(), x.cpu(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(target.scale.cpu(), scale, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(target.zero.cpu(), zero)
    assert torch.equal(target.q[:, :features].cpu(), q)
    assert (target.q[:, features:] == 99).all()  # nothing beside the rows
    assert not target.ranges.any() and not target.counters.any()  # ready for the next launch


@pytest.mark.sanitize
@pytest.mark.parametrize("zero_point", [0, -5])
def test_static_rows_equal_the_reference(zero_point: int) -> None:
    x = hard_rows(10, 50).to(DEVICE)
    tokens = len(x)
    target = Target(
        floats=None,
        floats_stride=0,
        q=torch.full((tokens, 50), 99, dtype=torch.int8, device=DEVICE),
        q_stride=50,
        scale=torch.tensor([0.02], device=DEVICE),
        zero=torch.tensor([zero_point], dtype=torch.int32, device=DEVICE) if zero_point else None,
        low=-127,
    )
    rows_kernel[(5,)](x, tokens, 50, target, "static", 4, 64, enable_fp_fusion=False)
    expected = quantize_static(x.cpu(), 0.02, zero_point, -127, 127)
    assert torch.equal(target.q.cpu().int(), expected)


@triton.jit
def static_kernel(x, scale, q, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(q + at, quantize_values(tl.load(x + at), tl.load(scale), -5, -127, 127))


@pytest.mark.parametrize("exponent", [-149, -126, -100, -9, -1, 0, 3, 100, 127])
def test_static_quotients_are_rounded_as_divisions(exponent: int) -> None:
    """Ties, and the floats next to them: an inverse alone would be off at some."""
    generator = torch.Generator().manual_seed(exponent)
    scale = (1 + torch.rand(1, generator=generator) * 0.9) * 2.0**exponent
    ties = (torch.arange(-256, 256) + 0.5) * scale
    near = [torch.nextafter(ties, torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    x = torch.cat([ties, *near, hard_rows(7, 32).flatten()]).to(DEVICE)
    q = torch.empty_like(x, dtype=torch.int32)
    static_kernel[(1,)](x, scale.to(DEVICE), q, len(x), enable_fp_fusion=False)
    wanted = quantize_static(x.cpu(), float(scale), -5, -127, 127)
    assert torch.equal(q.cpu(), wanted)
