"""Weights with zero points, against the reference's exact integers on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_runtime import _C
from sparse_runtime.kernels.linear import reference

ISAS = [row["name"] for row in _C.isas() if row["available"]]
POOL = _C.WorkspacePool()
ANY = 2**40
SCHEMES = [("asymmetric",), ("symmetric_full",), ("static", 0.04, 131)]


def built(w: Tensor, zero: Tensor, scale: Tensor, layout: str, scheme: tuple) -> object:
    packed = _C.int8_panels_pack(w.data_ptr(), *w.shape, layout)
    return _C.PanelLinear(
        "layer", [(ANY, packed)], scale.data_ptr(), 0, *scheme, zero_points_ptr=zero.data_ptr()
    )


def run(x: Tensor, layer: object, isa: str, threads: int) -> Tensor:
    forward = _C.Forward([len(x)], [], threads, isa, POOL)
    value = forward.from_rows(x.data_ptr(), x.stride(0), x.shape[1], None)
    y = forward.linear(value, layer, "none", None, None)  # type: ignore[arg-type]
    out = torch.full((len(x), y.features), 1e9)
    forward.to_rows(y, out.data_ptr(), out.stride(0))
    forward.run()
    return out


def expected(x: Tensor, w: Tensor, zero: Tensor, scale: Tensor, scheme: tuple) -> Tensor:
    if scheme[0] == "asymmetric":
        q, x_scale, x_zero = reference.quantize_rows_asymmetric(x)
    elif scheme[0] == "symmetric_full":
        q, x_scale = reference.quantize_rows_full_range(x)
        x_zero = torch.zeros(len(x), dtype=torch.int32)
    else:
        q = reference.quantize_static(x, scheme[1], scheme[2], 0, 255)
        x_scale, x_zero = torch.tensor([scheme[1]]), torch.tensor(scheme[2])
    return reference.integer_linear(
        q, x_zero.reshape(-1), x_scale, w, scale, weight_zero_point=zero
    )


def layouts(isa: str) -> list[str]:
    """Grouped bytes, plain bytes, and AMX tiles where there are any."""
    names = ["dense", "band4_gathered", "tiles"]
    return [name for name in names if _C.int8_panels_runs(name, isa)]


@pytest.mark.parametrize(("isa", "layout"), [(i, name) for i in ISAS for name in layouts(i)])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("outputs", "inputs", "tokens", "threads"),
    [
        (1, 1, 1, 1),
        (70, 65, 17, 1),  # inputs off every group; rows off a call
        (200, 130, 75, 1),  # all rows of a panel in one task
        (200, 130, 75, 4),  # rows in several tasks, each with sums of its own
    ],
)
def test_exact(
    isa: str, layout: str, scheme: tuple, outputs: int, inputs: int, tokens: int, threads: int
) -> None:
    torch.manual_seed(inputs)
    x = 2 * torch.randn(tokens, inputs)
    x[0] = 0.0
    x[-1, 0] = -0.0
    w = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8)
    w[0] = 0  # a row without units in sparse layouts still has its zero point
    zero = torch.randint(-128, 128, (outputs,), dtype=torch.int32)
    zero[-1] = 0
    scale = 2.0 ** torch.randint(-3, 4, (outputs,))  # one rounding or two: the same
    got = run(x, built(w, zero, scale, layout, scheme), isa, threads)
    assert torch.equal(got, expected(x, w, zero, scale, scheme))


@pytest.mark.parametrize("isa", ISAS)
def test_a_token_that_is_not_finite_stays_alone(isa: str) -> None:
    x = torch.randn(20, 64)
    w = torch.randint(-128, 128, (32, 64), dtype=torch.int8)
    zero, scale = torch.full((32,), 7, dtype=torch.int32), torch.ones(32)
    layer = built(w, zero, scale, "dense", ("asymmetric",))
    clean = run(x, layer, isa, 1)
    x[7, 3] = float("nan")
    got = run(x, layer, isa, 1)
    assert bool(got[7].isnan().all())
    others = [i for i in range(20) if i != 7]
    assert torch.equal(got[others], clean[others])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_fit(isa: str, sign: int) -> None:
    """All inputs and weights as far from their zero points as they go, at the limit of inputs."""
    k = _C.PANEL_MAX_K_ZERO_POINTS
    x = torch.full((2, k), 255.0)
    w = torch.full((4, k), 127 if sign > 0 else -128, dtype=torch.int8)
    zero = torch.full((4,), -128 if sign > 0 else 127, dtype=torch.int32)
    scheme = ("static", 1.0, 0)
    got = run(x, built(w, zero, torch.ones(4), "dense", scheme), isa, 1)
    assert torch.equal(got, torch.full((2, 4), float(sign * k * 255 * 255)))


def test_bad_zero_points_are_named() -> None:
    k = _C.PANEL_MAX_K_ZERO_POINTS + 1
    one = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=f"zero_points_ptr: expected at most {k - 1} inputs"):
        built(torch.ones(1, k, dtype=torch.int8), one, torch.ones(1), "dense", ("asymmetric",))
    with pytest.raises(ValueError, match=r"zero_points_ptr: expected a value in -128..127"):
        built(
            torch.ones(1, 4, dtype=torch.int8), one + 128, torch.ones(1), "dense", ("asymmetric",)
        )
