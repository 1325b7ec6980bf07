"""Requantized outputs of a linear layer, bit for bit on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_runtime import _C

ISAS = [row["name"] for row in _C.isas() if row["available"]]
POOL = _C.WorkspacePool()
ANY = 2**40
INPUT = (0.037, 131)  # scale and zero point, uint8
UINT8, INT8, NARROW = (0.11, 90, 0, 255), (0.25, -3, -128, 127), (0.5, 0, -127, 127)
NONE = (0.0, 0, 0, 0)


def layer(w: Tensor, scale: Tensor, bias: Tensor | None, layout: str, outputs: Tensor) -> object:
    packed = _C.int8_panels_pack(w.data_ptr(), *w.shape, layout)
    at = 0 if bias is None else bias.data_ptr()
    return _C.PanelLinear(
        "layer", [(ANY, packed)], scale.data_ptr(), at, "static", *INPUT, outputs.data_ptr()
    )


def product(x: Tensor, w: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Floats before the requantization, rounded after each step."""
    q = (x / INPUT[0]).round().clamp(-INPUT[1], 255 - INPUT[1]).nan_to_num(0.0)
    y = (q.double() @ w.double().T).float() * torch.tensor(INPUT[0]) * scale
    return y if bias is None else y + bias


def requantized(y: Tensor, outputs: Tensor) -> Tensor:
    scale, zero, low, high = outputs.unbind(1)
    some = torch.where(scale > 0, scale, torch.ones_like(scale))
    q = ((y / some).round().nan_to_num(0.0) + zero).clamp(low, high) - zero
    return torch.where(scale > 0, q * some, y)


def run(x: Tensor, built: object, isa: str, activation: str, residual: Tensor | None) -> Tensor:
    tokens = len(x)
    forward = _C.Forward([tokens], [], 2, isa, POOL)
    value = forward.from_rows(x.data_ptr(), x.stride(0), x.shape[1], None)
    added = None
    if residual is not None:
        added = forward.from_rows(residual.data_ptr(), residual.stride(0), residual.shape[1], None)
    y = forward.linear(value, built, activation, added, None)
    out = torch.full((tokens, y.features), 1e9)
    forward.to_rows(y, out.data_ptr(), out.stride(0))
    forward.run()
    return out


def inputs(tokens: int, features: int, kind: str) -> Tensor:
    x = torch.randn(tokens, features + 5)[:, :features]  # rows apart
    if kind == "large":
        x = x * 1e4
    x[0] = 0.0
    x[-1, 0] = -0.0
    return x


SHAPES = [
    (1, 1, 1),  # one slot, one row
    (70, 64, 17),  # two calls of rows, the last one short; a vector and one slot
    (33, 130, 130),  # inputs off every group; three panels
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["dense", "band1_gathered"])
@pytest.mark.parametrize("kind", ["usual", "large"])  # large: levels at both ends
@pytest.mark.parametrize(("outputs", "features", "tokens"), SHAPES)
def test_levels_are_the_reference_s(
    isa: str, layout: str, kind: str, outputs: int, features: int, tokens: int
) -> None:
    torch.manual_seed(tokens)
    x = inputs(tokens, features, kind)
    # Small weights take the zero point away in floats, and large ones of many inputs in integers.
    most = 127 if features == 130 else 3
    w = torch.randint(-most, most + 1, (outputs, features), dtype=torch.int8)
    scale, bias = torch.rand(outputs) * 0.02, torch.randn(outputs)
    rows = [UINT8, NONE, INT8, NARROW]
    levels = torch.tensor([rows[i % 4] for i in range(outputs)])
    residual = torch.randn(tokens, outputs)
    built = layer(w, scale, bias, layout, levels)
    y = requantized(product(x, w, scale, bias), levels)
    plain = levels[:, 0] == 0  # the product and the bias in one rounding there
    got = run(x, built, isa, "none", None)
    assert torch.equal(got[:, ~plain], y[:, ~plain])
    torch.testing.assert_close(got[:, plain], y[:, plain], rtol=2e-6, atol=2e-6)
    added = run(x, built, isa, "none", residual)
    assert torch.equal(added[:, ~plain], (y + residual)[:, ~plain])
    gelu = run(x, built, isa, "gelu", None)
    torch.testing.assert_close(gelu[:, ~plain], F.gelu(y)[:, ~plain], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_ties_and_what_is_not_a_number(isa: str) -> None:
    """A bias of halves meets every tie; a NaN becomes 0, an infinity the last level."""
    steps = torch.arange(-20, 21) / 2
    bias = torch.cat([steps, torch.tensor([float("nan"), float("inf"), -float("inf"), -0.1])])
    rows = len(bias)
    levels = torch.tensor([(1.0, 0, -8, 7)] * rows)
    x, w = torch.zeros(1, 4), torch.zeros(rows, 4, dtype=torch.int8)
    got = run(x, layer(w, torch.ones(rows), bias, "dense", levels), isa, "none", None)[0]
    expected = torch.cat([steps.round().clamp(-8, 7), torch.tensor([0.0, 7, -8, 0])])
    assert torch.equal(got, expected)
    assert not bool(torch.signbit(got[expected == 0]).any()), "levels have no -0"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("step", [0.1, 1 / 3, 0.0078431375, 3e38, 1e-38])
def test_the_last_bits_around_a_tie(isa: str, step: float) -> None:
    """A product with the inverse of the scale would round some of these to the other level."""
    scale = torch.tensor(step)
    ties = ((torch.arange(-12, 12) + 0.5).double() * step).float()
    around = [ties]
    for direction in (-torch.inf, torch.inf):
        near = ties
        for _ in range(3):
            near = torch.nextafter(near, torch.tensor(direction))
            around.append(near)
    bias = torch.cat(around).clamp(-3e38, 3e38)
    levels = torch.tensor([(float(scale), 0, -128, 127)] * len(bias))
    x, w = torch.zeros(1, 4), torch.zeros(len(bias), 4, dtype=torch.int8)
    got = run(x, layer(w, torch.ones(len(bias)), bias, "dense", levels), isa, "none", None)[0]
    expected = (bias / scale).round().clamp(-128, 127) * scale
    assert torch.equal(got, expected)


def test_a_layer_without_rows_that_requantize_is_as_before() -> None:
    torch.manual_seed(0)
    x = inputs(40, 64, "usual")
    w = torch.randint(-127, 128, (32, 64), dtype=torch.int8)
    scale, bias = torch.rand(32), torch.randn(32)
    packed = _C.int8_panels_pack(w.data_ptr(), 32, 64, "dense")
    plain = _C.PanelLinear(
        "layer", [(ANY, packed)], scale.data_ptr(), bias.data_ptr(), "static", *INPUT
    )
    none = layer(w, scale, bias, "dense", torch.tensor([NONE] * 32))
    assert torch.equal(run(x, none, "auto", "gelu", None), run(x, plain, "auto", "gelu", None))
    assert none.bytes > plain.bytes  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "row",
    [
        (-1.0, 0, 0, 255),  # no scale
        (float("inf"), 0, 0, 255),
        (1.0, 0.5, 0, 255),  # not an integer
        (1.0, 9, 10, 255),  # 0 has no level
        (1.0, 0, -129, 127),  # more than bytes hold
    ],
)
def test_bad_outputs_are_named(row: tuple[float, ...]) -> None:
    w, scale = torch.ones(2, 4, dtype=torch.int8), torch.ones(2)
    levels = torch.tensor([UINT8, row])
    with pytest.raises(ValueError, match=r"outputs_ptr: expected a positive .* in row 1"):
        layer(w, scale, None, "dense", levels)
