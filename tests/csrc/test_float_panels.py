"""The float linears over panels: every layout on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime import _C
from sparse_runtime.testing.tolerances import assert_close_to_oracle

LAYOUTS = ("dense32", "sparse32", "dense16", "tiles16")
ISAS = [row["name"] for row in _C.isas() if row["available"]]
RUNS = [(isa, layout) for isa in ISAS for layout in LAYOUTS if _C.float_panels_runs(layout, isa)]
POOL = _C.WorkspacePool()

SHAPES = [
    (32, 64, 64),  # one block of rows, one whole panel
    (1, 1, 1),  # everything padded
    (33, 65, 17),  # one over: second block of rows, odd input, second vector
    (31, 161, 33),  # second block of inputs with one input; three vectors
    (96, 340, 200),  # three blocks of inputs, four panels, the last with one vector
    (8, 162, 48),  # a pair in the second block
    (160, 140, 20),  # groups of 64 rows, the last of 32: dense bands of 6, 4 and 2
    (800, 140, 20),  # groups of 128 sparse rows, the last of 32
    (800, 300, 20),  # of 64, as queries, keys and values
]


def problem(n: int, k: int, tokens: int, density: float, layout: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n + k)
    w = torch.randn(n, k) * (torch.rand(n, k) < density)
    x = torch.randn(tokens, k)
    if layout.endswith("16"):  # what both operands are made of there
        w, x = w.bfloat16().float(), x.bfloat16().float()
    return w, x


def multiply(w: Tensor, x: Tensor, layout: str, isa: str) -> Tensor:
    n, k = w.shape
    layer = _C.PanelLinear("w", [(2**40, _C.float_panels_pack(w.data_ptr(), n, k, layout))], 0)
    y = torch.empty(len(x), n)
    layer.apply(x.data_ptr(), k, len(x), "none", 0, 0, y.data_ptr(), n, 2, isa, POOL)
    return y


@pytest.mark.parametrize(("isa", "layout"), RUNS)
@pytest.mark.parametrize(("n", "k", "tokens"), SHAPES)
@pytest.mark.parametrize("density", [1.0, 0.1, 0.01, 0.0])
def test_close_to_the_oracle(
    isa: str, layout: str, n: int, k: int, tokens: int, density: float
) -> None:
    w, x = problem(n, k, tokens, density, layout)
    exact = x.double() @ w.double().T
    # A float32 sum of k products errs by less than k roundings of the sum of their sizes.
    bound = 2**-24 * (k + 2) * (x.double().abs() @ w.double().abs().T)
    assert bool(((multiply(w, x, layout, isa) - exact).abs() <= bound).all())


@pytest.mark.parametrize("layout", ["dense32", "sparse32"])
@pytest.mark.parametrize("isa", ISAS)
def test_long_sums_err_as_dense_pytorch_does(isa: str, layout: str) -> None:
    # 24 blocks of inputs, 300 nonzeros a row: one running sum of them would err three times as far.
    w, x = problem(64, 3072, 64, 0.1, layout)
    dense = nn.functional.linear(x, w)
    y, exact = multiply(w, x, layout, isa), x.double() @ w.double().T
    assert_close_to_oracle(y, exact, dense, multiple=2, name=f"{isa} {layout}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 65), (64, 300), (130, 257), (800, 140)])
@pytest.mark.parametrize("density", [1.0, 0.15, 0.01, 0.0])
def test_unpack_returns_what_was_packed(layout: str, n: int, k: int, density: float) -> None:
    w, _ = problem(n, k, 1, density, layout)
    w[0, 0] = -0.0
    back = torch.full_like(w, 7.0)
    _C.float_panels_pack(w.data_ptr(), n, k, layout).unpack(back.data_ptr())
    assert torch.equal(back, w)  # by value: a sparse layout does not keep the sign of zero


@pytest.mark.parametrize("isa", ISAS)
def test_skipped_zeros_do_not_spread_nan(isa: str) -> None:
    w = torch.zeros(40, 64)
    w[3, 5] = 2.0
    x = torch.ones(5, 64)
    x[2, 6] = float("nan")  # no weight reads it
    y = multiply(w, x, "sparse32", isa)
    assert bool(y.isfinite().all())
    assert torch.equal(y[:, 3], torch.full((5,), 2.0))


@pytest.mark.parametrize("isa", ISAS)
def test_rows_that_fill_up_a_band_read_no_input_of_others(isa: str) -> None:
    # Rows of 3, 2, 1, 1 nonzeros are a band of 3 units, the fifth row is a band of its own.
    w = torch.zeros(32, 8)
    for row, inputs in enumerate(([0], [1, 2], [3, 4, 5], [6], [7])):
        w[row, inputs] = 1.0
    x = torch.ones(1, 8)
    x[0, 4] = float("nan")
    y = multiply(w, x, "sparse32", isa)[0]
    assert y[2].isnan()
    assert torch.equal(y[[0, 1, 3, 4, 5]], torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0]))


@pytest.mark.parametrize("n", [40, 800])  # groups of 64 rows and of 128
def test_counted_units_are_the_nonzeros_and_what_fills_up_bands(n: int) -> None:
    w = torch.zeros(n, 162)
    w[:5, 0] = 1.0  # a band of four units, and one of one
    w[5:9, 160:] = 1.0  # second block: four rows of two units
    w[9, 161] = 1.0  # a band of its own
    assert _C.float_panels_count(w.data_ptr(), n, 162)["sparse32"] == 5 + 8 + 1
    w[8, 160] = 0.0  # filled up
    assert _C.float_panels_count(w.data_ptr(), n, 162)["sparse32"] == 5 + 8 + 1
    assert _C.float_panels_count(w.data_ptr(), n, 162)["dense32"] == -(-n // 32) * 32 * 162
