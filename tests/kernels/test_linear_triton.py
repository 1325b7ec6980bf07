"""The tile kernel of linear layers against the reference: integers to the bit, floats bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.kernels.dense.layout import pack
from sparse_runtime.kernels.linear.configs import Config, Workspace, row_blocks, workspace_needs
from sparse_runtime.kernels.linear.linear_triton import linear
from sparse_runtime.kernels.linear.operands import Epilogue, Quantized, Target
from sparse_runtime.kernels.linear.reference import (
    ACTIVATIONS,
    Quantizer,
    float_linear,
    integer_linear,
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_rows_full_range,
    quantize_static,
    requantize,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Config(16, 16, 32)
TMA = SMALL._replace(tma=True)
# tokens, outputs, inputs, config
HAZARDS = [
    (1, 1, 1, SMALL),  # less than any tile
    (16, 16, 32, SMALL),  # exactly one tile and step
    (32, 32, 64, SMALL),  # whole tiles, two steps without masks
    (19, 17, 48, SMALL),  # off every tile; inputs a multiple of 16 but not of the step
    (33, 50, 17, SMALL),  # inputs off 16: rows of the weight are padded
    (19, 40, 96, SMALL._replace(split_k=2)),  # 3 steps in 2 splits: the last has fewer
    (17, 33, 128, SMALL._replace(split_k=4)),  # one step a split
    (17, 33, 40, SMALL._replace(split_k=4)),  # 2 steps in 4 splits: two have none
    (70, 20, 32, SMALL._replace(group_m=2)),  # 5 blocks of tokens in groups of 2: the last is short
    (40, 70, 64, Config(64, 128, 32, group_m=1)),  # so large a tile is ended in two parts
]


HAS_TMA = DEVICE == "cpu" or torch.cuda.get_device_capability() >= (9, 0)
if HAS_TMA:
    HAZARDS += [
        (33, 50, 80, TMA._replace(split_k=2)),  # the copy engine checks bounds
        (33, 50, 70, TMA),  # rows of the input are not aligned: without the engine
    ]


def integers(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8).to(DEVICE)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def scales(seed: int, count: int) -> Tensor:
    return normal(seed, count).abs() * 0.01 + 1e-4


def wide(rows: Tensor, extra: int = 16) -> Tensor:
    """The same rows within wider ones."""
    padded = rows.new_full((len(rows), rows.shape[1] + extra), 77)
    padded[:, : rows.shape[1]] = rows
    return padded[:, : rows.shape[1]]


def make_target(
    tokens: int, features: int, scheme: str, dtype: torch.dtype = torch.float32
) -> Target:
    floats = torch.full((tokens, features), 7.0, dtype=dtype, device=DEVICE)
    if scheme == "none":
        return Target(floats, features)
    q = torch.full((tokens, features + 3), 99, dtype=torch.int8, device=DEVICE)[:, :features]
    if scheme == "static":
        zero = torch.tensor([-5], dtype=torch.int32, device=DEVICE)
        return Target(None, 0, q, features + 3, scales(9, 1) * 3, zero, low=-127)
    zero = torch.full((tokens,), 7, dtype=torch.int32, device=DEVICE)
    return Target(
        floats,
        features,
        q,
        features + 3,
        torch.full((tokens,), 7.0, device=DEVICE),
        zero if scheme == "asymmetric" else None,
        ranges=torch.zeros(2, tokens, dtype=torch.int32, device=DEVICE),
        counters=torch.zeros(row_blocks(tokens, SMALL), dtype=torch.int32, device=DEVICE),
    )


def run(
    x: Quantized | Tensor,
    weight: Tensor,
    epilogue: Epilogue,
    target: Target,
    activation: str | None = None,
    scheme: str = "none",
    config: Config = SMALL,
) -> Tensor:
    """Launch, and find all counters at zero; the floats, if any."""
    tokens = len(x.q) if isinstance(x, Quantized) else len(x)
    sums, counts = workspace_needs(tokens, len(weight), config)
    workspace = Workspace(
        torch.full((sums,), torch.nan, device=DEVICE) if sums else None,
        torch.zeros(counts, dtype=torch.int32, device=DEVICE),
    )
    linear(x, pack(weight), epilogue, activation, target, scheme, config, workspace)
    assert not workspace.counters.any()
    for used in (target.ranges, target.counters):
        assert used is None or not used.any()
    return target.q if target.floats is None else target.floats  # type: ignore[return-value]


def quantized(tokens: int, inputs: int, zero: bool, per_token: bool = True) -> Quantized:
    q = wide(integers(1, tokens, inputs))
    count = tokens if per_token else 1
    zeros = integers(2, count).int() if zero else None
    return Quantized(q, q.stride(0), scales(3, count), zeros, int(per_token))


def expected(x: Quantized, weight: Tensor, epilogue: Epilogue, **more: Any) -> Tensor:
    zero = 0 if x.zero is None else x.zero.expand(len(x.q))
    assert epilogue.weight_scale is not None
    return integer_linear(
        x.q,
        zero,
        x.scale,
        weight,
        epilogue.weight_scale,
        epilogue.bias,
        weight_zero_point=epilogue.weight_zero,
        **more,
    )


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("tokens", "outputs", "inputs", "config"), HAZARDS)
def test_integer_products_equal_the_reference(
    tokens: int, outputs: int, inputs: int, config: Config
) -> None:
    x, weight = quantized(tokens, inputs, zero=False), integers(4, outputs, inputs)
    epilogue = Epilogue(weight_scale=scales(5, outputs), bias=normal(6, outputs))
    found = run(x, weight, epilogue, make_target(tokens, outputs, "none"), config=config)
    same(found, expected(x, weight, epilogue))


@pytest.mark.sanitize
@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("weight_zeros", [True, False])
def test_zero_points_equal_the_reference(weight_zeros: bool, per_token: bool, split_k: int) -> None:
    tokens, outputs, inputs = 19, 40, 80  # off every tile; 3 steps
    x, weight = quantized(tokens, inputs, True, per_token), integers(4, outputs, inputs)
    zero = integers(7, outputs).int() if weight_zeros else None
    w_sum = weight.int().sum(1) - (0 if zero is None else inputs * zero)
    epilogue = Epilogue(scales(5, outputs), w_sum.int(), zero, normal(6, outputs))
    config = SMALL._replace(split_k=split_k)
    found = run(x, weight, epilogue, make_target(tokens, outputs, "none"), config=config)
    same(found, expected(x, weight, epilogue))


@pytest.mark.parametrize(
    "config",
    # Three tiles a row, one or two programs each; one tile a row that is ended in parts.
    [SMALL, SMALL._replace(split_k=2), Config(64, 128, 32)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", ["static", "symmetric", "full_range", "asymmetric"])
def test_quantized_results_equal_the_reference(
    scheme: str, dtype: torch.dtype, config: Config
) -> None:
    tokens, outputs, inputs = 19, 40, 64
    x, weight = quantized(tokens, inputs, zero=False), integers(4, outputs, inputs)
    weight[:] = torch.where(torch.arange(outputs, device=DEVICE)[:, None] == 3, 0, weight)
    residual = wide(normal(8, tokens, outputs).to(dtype))
    residual[5] = torch.nan
    residual[6] = torch.inf
    x.q[7] = 0
    residual[7] = -0.0  # a row of zeros
    epilogue = Epilogue(scales(5, outputs), residual=residual, residual_stride=residual.stride(0))
    target = make_target(tokens, outputs, scheme, dtype)
    run(x, weight, epilogue, target, scheme=scheme, config=config)
    y = expected(x, weight, epilogue, residual=residual)
    if scheme == "static":  # its reader never sees floats, which are not rounded on the way
        assert target.scale is not None
        q = quantize_static(y, float(target.scale), -5, -127, 127)
        zero = scale = None
    else:
        y = y.to(dtype)
        assert target.floats is not None
        same(target.floats, y)
        zero = None
        if scheme == "asymmetric":
            q, scale, zero = quantize_rows_asymmetric(y)
            q, zero = q - 128, zero - 128
        else:
            q, scale = (quantize_rows if scheme == "symmetric" else quantize_rows_full_range)(y)
        assert target.scale is not None
        same(target.scale, scale)
    assert target.q is not None
    same(target.q, q.to(torch.int8))
    beside = target.q.as_strided((tokens, 3), target.q.stride(), outputs)
    assert (beside == 99).all()
    if zero is not None:
        assert target.zero is not None
        same(target.zero, zero)


@pytest.mark.sanitize
def test_output_quantizers_equal_the_reference() -> None:
    tokens, outputs, inputs = 17, 20, 32  # off the tiles
    x, weight = quantized(tokens, inputs, zero=False), integers(4, outputs, inputs)
    quantizers = [Quantizer(0.5, 3, -128, 127), Quantizer(0.25, -7, -127, 100), None]
    chosen = [quantizers[n % 3] for n in range(outputs)]
    given = [quantizer or Quantizer(0.0, 0, 0, 0) for quantizer in chosen]
    columns = [torch.tensor(column, device=DEVICE) for column in zip(*given, strict=True)]
    epilogue = Epilogue(
        scales(5, outputs),
        bias=normal(6, outputs),
        out_scale=columns[0].float(),
        out_zero=columns[1].int(),
        out_low=columns[2].int(),
        out_high=columns[3].int(),
    )
    found = run(x, weight, epilogue, make_target(tokens, outputs, "none"))
    y = expected(x, weight, epilogue)
    wanted = [requantize(y[:, n], chosen[n]) for n in range(outputs)]
    same(found, torch.stack(wanted, 1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_the_references(activation: str) -> None:
    x, weight = quantized(17, 32, zero=False), integers(4, 20, 32)
    epilogue = Epilogue(scales(5, 20), bias=normal(6, 20))
    target = make_target(17, 20, "symmetric")
    run(x, weight, epilogue, target, activation, "symmetric")
    assert target.floats is not None and target.q is not None and target.scale is not None
    wanted = expected(x, weight, epilogue, activation=activation)
    torch.testing.assert_close(target.floats, wanted, rtol=2e-6, atol=2e-6)
    q, scale = quantize_rows(target.floats)  # of the floats as they are: exact again
    same(target.q, q)
    same(target.scale, scale)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    # The rounding of the result, beside that of the sums in float32.
    [(torch.float32, 2**-24), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)],
)
@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs", "config"), [HAZARDS[i] for i in (0, 2, 4, 5, 6, 7)]
)
def test_float_products_are_near_float64(
    tokens: int, outputs: int, inputs: int, config: Config, dtype: torch.dtype, bound: float
) -> None:
    x, weight = wide(normal(1, tokens, inputs).to(dtype)), normal(2, outputs, inputs).to(dtype)
    bias, residual = normal(3, outputs), normal(4, tokens, outputs).to(dtype)
    epilogue = Epilogue(bias=bias, residual=residual, residual_stride=outputs)
    target = make_target(tokens, outputs, "none", dtype)
    found = run(x, weight, epilogue, target, "gelu", config=config)
    wanted = float_linear(x.double(), weight.double(), bias.double(), "gelu", residual.double())
    sums = x.double().abs() @ weight.double().abs().T + bias.abs() + residual.double().abs()
    limit = 1e-6 * sums + bound * wanted.abs()
    assert ((found.double() - wanted).abs() <= limit).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.bfloat16])
def test_zeros_give_the_bias(dtype: torch.dtype) -> None:
    x, weight = torch.zeros(5, 40, dtype=dtype, device=DEVICE), integers(1, 7, 40).to(dtype)
    bias = normal(2, 7)
    rows: Quantized | Tensor = x
    if dtype == torch.int8:
        rows = Quantized(x, 40, scales(3, 5), None, 1)
    else:
        x[1], weight[2] = -0.0, -0.0
    scale = scales(4, 7) if dtype == torch.int8 else None
    found = run(rows, weight, Epilogue(scale, bias=bias), make_target(5, 7, "none"))
    same(found, bias.expand(5, 7))


def test_no_value_outside_of_the_weight_is_read() -> None:
    """Infinite neighbours, in rows beside the input's features, would make NaN of a zero."""
    x, weight = normal(1, 3, 20), normal(2, 4, 20)
    padded = torch.full((3, 24), torch.inf, device=DEVICE)
    padded[:, :20] = x
    found = run(padded[:, :20], weight, Epilogue(), make_target(3, 4, "none"))
    torch.testing.assert_close(found, x @ weight.T)


def test_no_tokens_launch_nothing() -> None:
    x = Quantized(integers(1, 0, 32), 32, scales(2, 1), None, 0)
    target = make_target(0, 16, "symmetric")
    found = run(x, integers(3, 16, 32), Epilogue(scales(4, 16)), target, scheme="symmetric")
    assert found.shape == (0, 16)
