"""The block-sparse kernel against the reference: integers to the bit, floats bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.formats.bits import pack_bits
from sparse_runtime.formats.block import to_blocks
from sparse_runtime.kernels.block.block_triton import block_linear
from sparse_runtime.kernels.block.configs import BlockConfig, row_blocks, workspace_needs
from sparse_runtime.kernels.block.layout import BlockTiles, pack
from sparse_runtime.kernels.block.reference import read_weight
from sparse_runtime.kernels.block.schedule import ITEM_FIELDS
from sparse_runtime.kernels.linear.operands import Epilogue, Quantized, Target
from sparse_runtime.kernels.linear.reference import (
    ACTIVATIONS,
    float_linear,
    integer_linear,
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_rows_full_range,
    quantize_static,
)
from sparse_runtime.kernels.linear.tiles import Workspace
from sparse_runtime.spec import Structure

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = BlockConfig(16)
# tokens, outputs, inputs, (R, C), density, config
HAZARDS = [
    (1, 16, 16, (16, 16), 1.0, SMALL),  # one block, one token
    (17, 48, 80, (16, 16), 0.5, SMALL),  # four blocks a step; off the tile of tokens
    (16, 64, 96, (32, 32), 0.5, SMALL),  # exactly a tile of tokens; two blocks a step
    (33, 128, 192, (64, 64), 0.5, SMALL),  # a block a step: no masks
    (20, 150, 300, (128, 128), 0.5, SMALL),  # two steps a block; both edges off the grid
    (20, 130, 70, (64, 16), 0.6, SMALL),  # outputs and inputs off the grid, inputs off 16
    (18, 40, 37, (16, 1), 0.5, SMALL),  # single inputs gathered; the last block row is half empty
    (18, 70, 50, (32, 4), 0.5, SMALL),  # runs of 4, a half one at the edge
    (18, 60, 50, (24, 8), 0.5, SMALL),  # rows padded to 32; the edge block row has 12
    (18, 100, 130, (48, 24), 0.6, SMALL),  # rows padded to 64; blocks of three runs cross steps
    (18, 330, 64, (160, 32), 0.6, SMALL),  # block rows cut in 128 and 32; the last has 10
    (18, 64, 64, (16, 16), 0.0, SMALL),  # all zero: epilogues alone
    (70, 48, 64, (16, 16), 0.5, SMALL._replace(group_m=2)),  # 5 blocks of tokens in groups of 2
    (40, 128, 64, (128, 64), 1.0, BlockConfig(64, num_warps=4)),  # results in four pieces
]


def draw(
    outputs: int, inputs: int, block: tuple[int, int], density: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Stored blocks and bitmask in the canonical form, zeros outside of the edges.

    The last row of blocks is empty where there are several.
    """
    generator = torch.Generator().manual_seed(outputs * inputs)
    (r, c), rows, cols = block, -(-outputs // block[0]), -(-inputs // block[1])
    mask = torch.rand(rows, cols, generator=generator) < density
    mask[1:][-1:] = False
    matrix = torch.randint(-127, 128, (rows * r, cols * c), generator=generator).float()
    if dtype != torch.int8:
        matrix = torch.randn(rows * r, cols * c, generator=generator)
        matrix[:, 1:][matrix[:, 1:] < -1.5] = -0.0
    matrix[outputs:] = 0
    matrix[:, inputs:] = 0
    blocks = to_blocks(matrix, Structure("block", rows=r, cols=c))[mask]
    return blocks.to(dtype).to(DEVICE), pack_bits(mask).to(DEVICE)


def layer(
    outputs: int, inputs: int, block: tuple[int, int], density: float, dtype: torch.dtype
) -> tuple[BlockTiles, Tensor]:
    """The packed weight and, from the canonical form, its matrix."""
    blocks, bits = draw(outputs, inputs, block, density, dtype)
    matrix = read_weight(blocks, bits, (outputs, inputs), block, int4=False)
    return pack(blocks, bits, (outputs, inputs), block), matrix


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def scales(seed: int, count: int) -> Tensor:
    return normal(seed, count).abs() * 0.01 + 1e-4


def wide(rows: Tensor, extra: int = 16) -> Tensor:
    """The same rows within wider ones."""
    padded = rows.new_full((len(rows), rows.shape[1] + extra), 77)
    padded[:, : rows.shape[1]] = rows
    return padded[:, : rows.shape[1]]


def quantized(tokens: int, inputs: int, zero: bool = False) -> Quantized:
    generator = torch.Generator().manual_seed(tokens + inputs)
    q = torch.randint(-128, 128, (tokens, inputs), generator=generator, dtype=torch.int8)
    q = wide(q.to(DEVICE))
    zeros = torch.arange(tokens, dtype=torch.int32, device=DEVICE) - 3 if zero else None
    return Quantized(q, q.stride(0), scales(3, tokens), zeros, 1)


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
    return Target(
        floats,
        features,
        q,
        features + 3,
        torch.full((tokens,), 7.0, device=DEVICE),
        torch.full((tokens,), 7, dtype=torch.int32, device=DEVICE)
        if scheme == "asymmetric"
        else None,
        ranges=torch.zeros(2, tokens, dtype=torch.int32, device=DEVICE),
        counters=torch.zeros(row_blocks(tokens, SMALL), dtype=torch.int32, device=DEVICE),
    )


def run(
    x: Quantized | Tensor,
    weight: BlockTiles,
    epilogue: Epilogue,
    target: Target,
    activation: str | None = None,
    scheme: str = "none",
    config: BlockConfig = SMALL,
) -> Tensor:
    """Launch, and find all counters at zero; the floats, if any."""
    tokens = len(x.q) if isinstance(x, Quantized) else len(x)
    sums, counts = workspace_needs(weight, tokens, config)
    workspace = Workspace(
        torch.full((sums,), torch.nan, device=DEVICE) if sums else None,
        torch.zeros(counts, dtype=torch.int32, device=DEVICE),
    )
    block_linear(x, weight, epilogue, activation, target, scheme, config, workspace)
    assert not workspace.counters.any()
    for used in (target.ranges, target.counters):
        assert used is None or not used.any()
    return target.q if target.floats is None else target.floats  # type: ignore[return-value]


def expected(x: Quantized, matrix: Tensor, epilogue: Epilogue, **more: Any) -> Tensor:
    zero = 0 if x.zero is None else x.zero
    assert epilogue.weight_scale is not None
    return integer_linear(x.q, zero, x.scale, matrix, epilogue.weight_scale, epilogue.bias, **more)


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("tokens", "outputs", "inputs", "block", "density", "config"), HAZARDS)
def test_integer_products_equal_the_reference(
    tokens: int,
    outputs: int,
    inputs: int,
    block: tuple[int, int],
    density: float,
    config: BlockConfig,
) -> None:
    weight, matrix = layer(outputs, inputs, block, density, torch.int8)
    x = quantized(tokens, inputs)
    epilogue = Epilogue(weight_scale=scales(5, outputs), bias=normal(6, outputs))
    found = run(x, weight, epilogue, make_target(tokens, outputs, "none"), config=config)
    same(found, expected(x, matrix, epilogue))


@pytest.mark.parametrize(
    ("dtype", "bound"),
    # The rounding of the result, beside that of the sums in float32.
    [(torch.float32, 2**-24), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)],
)
@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs", "block", "density", "config"),
    [HAZARDS[i] for i in (0, 3, 5, 6, 8, 13)],
)
def test_float_products_are_near_float64(
    tokens: int,
    outputs: int,
    inputs: int,
    block: tuple[int, int],
    density: float,
    config: BlockConfig,
    dtype: torch.dtype,
    bound: float,
) -> None:
    weight, matrix = layer(outputs, inputs, block, density, dtype)
    x = wide(normal(1, tokens, inputs).to(dtype))
    bias, residual = normal(3, outputs), normal(4, tokens, outputs).to(dtype)
    epilogue = Epilogue(bias=bias, residual=residual, residual_stride=outputs)
    target = make_target(tokens, outputs, "none", dtype)
    found = run(x, weight, epilogue, target, "gelu", config=config)
    wanted = float_linear(x.double(), matrix.double(), bias.double(), "gelu", residual.double())
    sums = x.double().abs() @ matrix.double().abs().T + bias.abs() + residual.double().abs()
    limit = 1e-6 * sums + bound * wanted.abs()
    assert ((found.double() - wanted).abs() <= limit).all()


@pytest.mark.parametrize("scheme", ["static", "symmetric", "full_range", "asymmetric"])
@pytest.mark.parametrize(
    ("outputs", "inputs", "block", "config"),
    [
        (60, 70, (24, 8), SMALL),  # padded rows must not raise a token's range
        (96, 640, (32, 64), SMALL._replace(parts=True)),  # only whole rows count themselves in
        (200, 64, (128, 64), BlockConfig(16, num_warps=1)),  # pieces: a range raised four times
    ],
)
def test_quantized_results_equal_the_reference(
    outputs: int, inputs: int, block: tuple[int, int], config: BlockConfig, scheme: str
) -> None:
    tokens = 19
    weight, matrix = layer(outputs, inputs, block, 0.8, torch.int8)
    assert bool(weight.slots) == config.parts
    x = quantized(tokens, inputs)
    residual = wide(normal(8, tokens, outputs).to(torch.bfloat16))
    residual[5] = torch.nan
    residual[6] = torch.inf
    x.q[7] = 0
    residual[7] = -0.0  # a row of zeros
    epilogue = Epilogue(scales(5, outputs), residual=residual, residual_stride=residual.stride(0))
    target = make_target(tokens, outputs, scheme, torch.bfloat16)
    run(x, weight, epilogue, target, scheme=scheme, config=config)
    y = expected(x, matrix, epilogue, residual=residual)
    scale = zero = None
    if scheme == "static":
        assert target.scale is not None
        q = quantize_static(y, float(target.scale), -5, -127, 127)
    else:
        y = y.to(torch.bfloat16)
        assert target.floats is not None
        same(target.floats, y)
        if scheme == "asymmetric":
            q, scale, zero = quantize_rows_asymmetric(y)
            q, zero = q - 128, zero - 128
        else:
            q, scale = (quantize_rows if scheme == "symmetric" else quantize_rows_full_range)(y)
    assert target.q is not None and target.scale is not None
    same(target.q, q.to(torch.int8))
    beside = target.q.as_strided((tokens, 3), target.q.stride(), outputs)
    assert (beside == 99).all()
    if scale is not None:
        same(target.scale, scale)
    if zero is not None:
        assert target.zero is not None
        same(target.zero, zero)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_parts_of_rows_add_up(dtype: torch.dtype) -> None:
    """Rows of 13, 5, 1 and no steps of 64: cut in 4, in 2, whole; two blocks of tokens."""
    tokens, outputs, inputs, block = 18, 64, 13 * 64, (16, 64)
    bits = torch.tensor([[255, 31], [31, 0], [1, 0], [0, 0]], dtype=torch.uint8, device=DEVICE)
    blocks, _ = draw(16 * 19, 64, block, 1.0, dtype)
    blocks = torch.cat([blocks, blocks[:1]])
    weight = pack(blocks, bits, (outputs, inputs), block)
    assert weight.slots == 6 and weight.counters == 2 and weight.longest == 13
    assert weight.parts.shape == (4 + 2 + 1 + 1, ITEM_FIELDS)
    matrix = read_weight(blocks, bits, (outputs, inputs), block, int4=False)
    config = SMALL._replace(parts=True)
    if dtype == torch.int8:
        x = quantized(tokens, inputs, zero=True)
        sums = matrix.int().sum(1).int()
        epilogue = Epilogue(scales(5, outputs), weight_sum=sums, bias=normal(6, outputs))
        found = run(x, weight, epilogue, make_target(tokens, outputs, "none"), config=config)
        same(found, expected(x, matrix, epilogue))
    else:
        rows = normal(1, tokens, inputs).to(dtype)
        found = run(rows, weight, Epilogue(), make_target(tokens, outputs, "none"), config=config)
        again = run(rows, weight, Epilogue(), make_target(tokens, outputs, "none"), config=config)
        same(found, again)
        wanted = rows.double() @ matrix.double().T
        limit = 1e-6 * (rows.double().abs() @ matrix.double().abs().T)
        assert ((found.double() - wanted).abs() <= limit).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_the_references(activation: str) -> None:
    weight, matrix = layer(48, 64, (16, 16), 0.4, torch.int8)
    x, epilogue = quantized(17, 64), Epilogue(scales(5, 48), bias=normal(6, 48))
    target = make_target(17, 48, "symmetric")
    run(x, weight, epilogue, target, activation, "symmetric")
    assert target.floats is not None and target.q is not None and target.scale is not None
    wanted = expected(x, matrix, epilogue, activation=activation)
    torch.testing.assert_close(target.floats, wanted, rtol=2e-6, atol=2e-6)
    q, scale = quantize_rows(target.floats)  # of the floats as they are: exact again
    same(target.q, q)
    same(target.scale, scale)


@pytest.mark.sanitize
def test_zero_points_of_tokens_equal_the_reference() -> None:
    """A token's zero point meets all of the row's weights, not those of one part or step."""
    weight, matrix = layer(40, 72, (16, 8), 0.5, torch.int8)
    x = quantized(18, 72, zero=True)
    epilogue = Epilogue(scales(5, 40), weight_sum=matrix.int().sum(1).int())
    same(run(x, weight, epilogue, make_target(18, 40, "none")), expected(x, matrix, epilogue))


def test_inputs_without_blocks_are_not_read() -> None:
    """Neither behind the edge nor where no block is: zero times infinity would be NaN."""
    blocks, bits = draw(16, 20, (16, 8), 1.0, torch.float32)
    bits[:] = 0b101  # the middle block goes, the last has 4 of 8 inputs
    weight = pack(blocks[[0, 2]], bits, (16, 20), (16, 8))
    matrix = read_weight(blocks[[0, 2]], bits, (16, 20), (16, 8), int4=False)
    x = normal(1, 3, 20)
    padded = torch.full((3, 24), torch.inf, device=DEVICE)
    padded[:, :20] = x
    padded[:, 8:16] = torch.nan
    found = run(padded[:, :20], weight, Epilogue(), make_target(3, 16, "none"))
    torch.testing.assert_close(found, x @ matrix.T)


def test_no_tokens_launch_nothing() -> None:
    weight, _ = layer(16, 32, (16, 16), 1.0, torch.int8)
    x = Quantized(torch.zeros(0, 32, dtype=torch.int8, device=DEVICE), 32, scales(2, 1), None, 0)
    target = make_target(0, 16, "symmetric")
    assert run(x, weight, Epilogue(scales(4, 16)), target, scheme="symmetric").shape == (0, 16)
