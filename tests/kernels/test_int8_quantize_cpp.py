"""Quantization of activations in C++, bit for bit against the documented PyTorch rules."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from sparse_runtime import _C

AVAILABLE = [s["name"] for s in _C.isas() if s["available"]]
WIDTHS = (1, 3, 4, 7, 8, 15, 16, 17, 64, 300)  # below, at and above 4, 8 and 16 lanes
TINY = torch.finfo(torch.float32).tiny


def rows_rule(x: Tensor) -> tuple[Tensor, Tensor]:
    """docs/kernels/int8_linear.md, quantize_rows."""
    amax = x.abs().amax(dim=-1, keepdim=True)
    clamped = amax.clamp(min=127 * TINY)
    scale = torch.where(amax == 0, torch.ones_like(amax), clamped / 127)
    inverse = torch.full_like(clamped, 127.0) / clamped
    q = torch.nan_to_num(x * inverse, nan=0.0).round().clamp(-127, 127) + 128
    return q.to(torch.uint8), scale[:, 0]


def static_rule(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """docs/kernels/int8_linear.md, quantize_static."""
    q = torch.nan_to_num(x / scale, nan=0.0).round() + zero_point
    return q.clamp(low, high).to(torch.uint8)


def quantize_rows(x: Tensor, isa: str, threads: int = 1) -> tuple[Tensor, Tensor]:
    t, k = x.shape
    q = torch.full((t, k + 3), 77, dtype=torch.uint8)
    scale = torch.full((t,), 77.0)
    _C.quantize_rows(
        *(x.data_ptr(), t, k, x.stride(0), q.data_ptr(), k + 3, scale.data_ptr(), threads, isa)
    )
    assert (q[:, k:] == 77).all()  # nothing beyond the row
    return q[:, :k], scale


def quantize_static(
    x: Tensor, scale: float, zero_point: int, low: int, high: int, isa: str
) -> Tensor:
    t, k = x.shape
    q = torch.full((t, k), 77, dtype=torch.uint8)
    _C.quantize_static(
        *(x.data_ptr(), t, k, x.stride(0), q.data_ptr(), k, scale, zero_point, low, high, 1, isa)
    )
    return q


def assert_follows_rule(x: Tensor, isa: str) -> None:
    q, scale = quantize_rows(x, isa)
    wanted_q, wanted_scale = rows_rule(x)
    assert torch.equal(q, wanted_q)
    torch.testing.assert_close(scale, wanted_scale, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_rows_follow_the_rule_for_every_width(isa: str) -> None:
    for t, k in product((1, 3, 70), WIDTHS):
        assert_follows_rule(torch.randn(t, k + 2)[:, :k] * torch.logspace(-40, 37, t)[:, None], isa)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_ties_go_to_even(isa: str) -> None:
    # amax = 127: scale 1, so halves are exact ties.
    halves = torch.arange(-126.5, 127.0)
    q, scale = quantize_rows(torch.cat([halves, torch.tensor([127.0])])[None], isa)
    assert scale.item() == 1.0
    assert torch.equal(q[0, :-1].int() - 128, halves.round().int())


@pytest.mark.parametrize("isa", AVAILABLE)
def test_zero_and_negative_zero_rows_have_scale_one(isa: str) -> None:
    x = torch.zeros(2, 35)
    x[1] = -0.0
    q, scale = quantize_rows(x, isa)
    assert (q == 128).all() and (scale == 1.0).all()


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("width", [5, 35])  # in the last vector only; in a whole one too
@pytest.mark.parametrize("position", [0, -1])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_end_in_the_scale_of_their_row(
    isa: str, width: int, position: int, value: float
) -> None:
    x = torch.randn(3, width)
    x[1, position] = value
    q, scale = quantize_rows(x, isa)
    assert scale.isfinite().tolist() == [True, False, True]
    assert (q[1] == 128).all()  # accumulators 0, so that 0 * scale makes every output NaN
    assert_follows_rule(x, isa)


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("largest", [1e-45, 1e-40, TINY, 127 * TINY, 3e-36, 3.4028235e38])
def test_subnormal_and_huge_rows_follow_the_rule(isa: str, largest: float) -> None:
    x = torch.linspace(-1, 1, 41)[None] * largest
    assert x.abs().max() > 0
    assert_follows_rule(x, isa)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_static_follows_onnx_for_every_width(isa: str) -> None:
    for k, zero_point in product(WIDTHS, (0, 3, 128, 255)):
        x = torch.randn(5, k + 2)[:, :k] * 20
        scale = torch.tensor(0.0371).item()
        for low, high in ((0, 255), (1, 255), (64, 192), (128, 128)):
            got = quantize_static(x, scale, zero_point, low, high, isa)
            assert torch.equal(got, static_rule(x, scale, zero_point, low, high))


@pytest.mark.parametrize("isa", AVAILABLE)
def test_static_rounds_half_to_even_and_divides(isa: str) -> None:
    # 7 * (1 / 0.1) and 7 / 0.1 differ in float32 for some inputs; the rule is the division.
    x = torch.arange(-300, 300).float()[None] * 0.05
    assert torch.equal(quantize_static(x, 0.1, 128, 0, 255, isa), static_rule(x, 0.1, 128, 0, 255))
    halves = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    got = quantize_static(halves, 1.0, 128, 0, 255, isa)
    assert (got.int() - 128).tolist() == [[0, 2, 2, 0, -2, -2]]


@pytest.mark.parametrize("isa", AVAILABLE)
def test_static_saturates_and_maps_nan_to_the_zero_point(isa: str) -> None:
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-45, -0.0]])
    assert quantize_static(x, 1e-30, 7, 0, 255, isa).tolist() == [[255, 0, 7, 255, 0, 7, 7]]
    assert quantize_static(x, 1e-30, 7, 10, 20, isa).tolist() == [[20, 10, 10, 20, 10, 10, 10]]


@pytest.mark.parametrize("threads", range(1, 9))
def test_threads_change_nothing(threads: int) -> None:
    x = torch.randn(301, 640)  # 51 rows a task: 6 tasks
    q, scale = quantize_rows(x, "auto", threads)
    wanted_q, wanted_scale = rows_rule(x)
    assert torch.equal(q, wanted_q) and torch.equal(scale, wanted_scale)


def test_no_rows_and_no_columns() -> None:
    assert quantize_rows(torch.empty(0, 5), "auto")[0].shape == (0, 5)
    q, scale = quantize_rows(torch.empty(4, 0), "auto")
    assert q.shape == (4, 0) and (scale == 1.0).all()


def asymmetric(x: Tensor, isa: str, threads: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    t, k = x.shape
    q = torch.full((t, k + 3), 77, dtype=torch.uint8)
    scale, zero_points = torch.full((t,), 77.0), torch.full((t,), 77, dtype=torch.uint8)
    _C.quantize_rows(
        *(x.data_ptr(), t, k, x.stride(0), q.data_ptr(), k + 3, scale.data_ptr(), threads, isa),
        zero_points_ptr=zero_points.data_ptr(),
    )
    assert (q[:, k:] == 77).all()  # nothing beyond the row
    return q[:, :k], scale, zero_points


def asymmetric_rule(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """docs/kernels/int8_linear.md, quantize_rows with zero points; finite rows."""
    low, high = x.amin(dim=-1, keepdim=True).clamp(max=0), x.amax(dim=-1, keepdim=True).clamp(min=0)
    levels = torch.full_like(low, 255.0)
    scale = (high / levels - low / levels).clamp(min=TINY)
    scale = torch.where(low == high, torch.ones_like(scale), scale)
    inverse = torch.ones_like(scale) / scale
    zero = (-low * inverse).round().clamp(max=255)
    q = ((x * inverse).round() + zero).clamp(0, 255)
    return q.to(torch.uint8), scale[:, 0], zero[:, 0].to(torch.uint8)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_asymmetric_rows_follow_the_rule_for_every_width(isa: str) -> None:
    for t, k, shift in product((1, 3, 70), WIDTHS, (-9.0, -0.4, 0.0, 0.4, 9.0)):
        x = (torch.randn(t, k + 2)[:, :k] + shift) * torch.logspace(-44, 37, t)[:, None]
        for found, wanted in zip(asymmetric(x, isa, threads=2), asymmetric_rule(x), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_asymmetric_rows_use_the_whole_range_and_keep_zero(isa: str) -> None:
    rows = [[0.0, 255.0], [-255.0, 0.0], [-17.0, 238.0], [3.0, 510.0], [-3.4e38, 3.4e38]]
    q, scale, zero = asymmetric(torch.tensor(rows), isa)
    assert q.tolist() == [[0, 255], [0, 255], [0, 255], [2, 255], [0, 255]]
    assert zero.tolist() == [0, 255, 17, 0, 128]
    assert scale[:4].tolist() == [1.0, 1.0, 1.0, 2.0] and bool(scale.isfinite().all())


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_asymmetric_rows_that_are_zero_or_not_finite(isa: str, value: float) -> None:
    x = torch.zeros(3, 35)
    x[1, 20], x[2] = value, -0.0
    q, scale, zero = asymmetric(x, isa)
    assert not q.any() and not zero.any()
    assert scale[1].isnan() and scale[[0, 2]].tolist() == [1.0, 1.0]
