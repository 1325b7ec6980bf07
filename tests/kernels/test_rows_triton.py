"""Quantization, norm and embedding of whole rows: integers to the bit, floats bounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")

from sparse_runtime.kernels.embedding import reference as embedding_reference
from sparse_runtime.kernels.embedding.embedding_triton import embed
from sparse_runtime.kernels.layer_norm.layer_norm_triton import normalize
from sparse_runtime.kernels.linear.operands import SCHEMES, Target
from sparse_runtime.kernels.linear.reference import quantize_rows as quantize_rows_symmetric
from sparse_runtime.kernels.linear.reference import (
    quantize_rows_asymmetric,
    quantize_rows_full_range,
    quantize_static,
)
from sparse_runtime.kernels.quantize import quantize_rows_triton
from sparse_runtime.kernels.quantize import row_blocks as row_blocks_module
from sparse_runtime.kernels.quantize.quantize_rows_triton import quantize_rows
from sparse_runtime.kernels.quantize.row_blocks import MAX_COLUMNS, row_blocks
from sparse_runtime.testing.tolerances import assert_close_to_oracle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
STATIC = (0.05, -3, -120, 119)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def spread(rows: Tensor) -> Tensor:
    """The same rows within wider ones, of NaN beside them."""
    padded = rows.new_full((len(rows), rows.shape[1] + 5), torch.nan)
    padded[:, : rows.shape[1]] = rows
    return padded[:, : rows.shape[1]]


def hard_rows(features: int) -> Tensor:
    """Random rows, zeros, -0.0, one sign, ties, subnormal, huge, NaN, infinity."""
    x = normal(features, 12, features)
    x[2], x[3], x[4] = 0.0, -0.0, x[1].abs()
    x[5] = -x[4]
    x[6] = (torch.arange(features) % 255 - 127 + 0.5).to(DEVICE)
    x[7], x[8] = x[1] * 1e-42, x[1] * 1e38
    x[9, features // 2], x[10, features // 2] = torch.nan, -torch.inf
    return x


def make_target(
    tokens: int, features: int, scheme: str, floats: torch.dtype | None = None
) -> Target:
    static = scheme == "static"
    scale, zero = torch.full((tokens,), 7.0), torch.full((tokens,), 7, dtype=torch.int32)
    if static:
        scale, zero = torch.tensor(STATIC[:1]), torch.tensor(STATIC[1:2], dtype=torch.int32)
    return Target(
        floats=None
        if floats is None
        else torch.full((tokens, features + 2), 7.0, dtype=floats, device=DEVICE),
        floats_stride=features + 2,
        q=None
        if scheme == "none"
        else torch.full((tokens, features + 3), 99, dtype=torch.int8, device=DEVICE),
        q_stride=features + 3,
        scale=scale.to(DEVICE),
        zero=zero.to(DEVICE) if static or scheme == "asymmetric" else None,
        low=STATIC[2] if static else -128,
        high=STATIC[3] if static else 127,
    )


def check_quantized(target: Target, x: Tensor, scheme: str) -> None:
    """q, scale and zero are those of the reference for the floats x; nothing beside the rows."""
    if scheme == "none":
        return
    assert target.q is not None and target.scale is not None
    features, x = x.shape[1], x.float()
    assert (target.q[:, features:] == 99).all()
    q = target.q[:, :features]
    if scheme == "static":
        assert torch.equal(q.int(), quantize_static(x, *STATIC))
        return
    if scheme == "asymmetric":
        expected, scale, zero = quantize_rows_asymmetric(x)
        expected = (expected - 128).to(torch.int8)
        assert target.zero is not None and torch.equal(target.zero, zero - 128)
    else:
        symmetric = scheme == "symmetric"
        expected, scale = (quantize_rows_symmetric if symmetric else quantize_rows_full_range)(x)
    torch.testing.assert_close(target.scale, scale, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(q, expected)


def floats_of(target: Target, features: int) -> Tensor:
    assert target.floats is not None
    assert (target.floats[:, features:] == 7).all()  # nothing beside the rows
    return target.floats[:, :features]


@pytest.mark.parametrize("scheme", SCHEMES[1:])
@pytest.mark.parametrize(
    "features",  # one; a whole block; off it; several warps
    [1, 16, pytest.param(50, marks=pytest.mark.sanitize), 1100],
)
def test_quantized_rows_equal_the_reference(scheme: str, features: int) -> None:
    x = spread(hard_rows(features))
    target = make_target(len(x), features, scheme)
    quantize_rows(x, target, scheme)
    check_quantized(target, x, scheme)


@pytest.mark.sanitize
@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_rows_longer_than_a_program_holds(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_rows_triton, "HELD", 32)
    monkeypatch.setattr(quantize_rows_triton, "_PART", 32)
    x = spread(hard_rows(70))  # two whole parts and one that is not
    target = make_target(len(x), 70, scheme)
    quantize_rows(x, target, scheme)
    check_quantized(target, x, scheme)


@pytest.mark.parametrize("dtype", FLOATS)
def test_half_precision_rows_are_quantized_as_they_are(dtype: torch.dtype) -> None:
    x = normal(1, 3, 40).to(dtype)
    target = make_target(3, 40, "asymmetric", torch.float32)
    quantize_rows(x, target, "asymmetric")
    check_quantized(target, x, "asymmetric")
    assert target.floats is not None and (target.floats == 7).all()  # not asked for


def test_no_tokens_and_no_features() -> None:
    empty = torch.empty(0, 8, device=DEVICE)
    target = make_target(0, 8, "symmetric", torch.float32)
    quantize_rows(empty, target, "symmetric")
    weight = torch.ones(8, device=DEVICE)
    normalize(empty, None, weight, weight, 1e-5, target, "symmetric")
    ids = torch.empty(0, dtype=torch.int64, device=DEVICE)
    embed((ids,), (torch.ones(3, 8, device=DEVICE),), None, None, 0.0, None, target, "symmetric")
    for scheme in ("symmetric", "full_range", "asymmetric"):
        target = make_target(2, 0, scheme)
        quantize_rows(torch.empty(2, 0, device=DEVICE), target, scheme)
        check_quantized(target, torch.empty(2, 0, device=DEVICE), scheme)


# One token; off the block of columns; exactly a block; two rows a program, and one left.
@pytest.mark.parametrize(
    ("tokens", "features", "few"), [(1, 48, 8), (5, 50, 8), (4, 64, 8), (5, 50, 4)]
)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm(
    tokens: int,
    features: int,
    few: int,
    dtype: torch.dtype,
    residual: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_blocks_module, "_FEW_TOKENS", few)
    x = spread((normal(1, tokens, features) * 2 + 3).to(dtype))
    other = spread(normal(2, tokens, features).to(dtype)) if residual else None
    weight, bias = (normal(3, features) + 1).to(dtype), normal(4, features).to(dtype)
    scheme = "symmetric" if residual else "asymmetric"
    target = make_target(tokens, features, scheme, dtype)
    normalize(x, other, weight, bias, 1e-5, target, scheme)

    def norm(kind: torch.dtype) -> Tensor:
        total = x.to(kind) if other is None else x.to(kind) + other.to(kind)
        return F.layer_norm(total, (features,), weight.to(kind), bias.to(kind), 1e-5)

    floats = floats_of(target, features)
    assert_close_to_oracle(floats, norm(torch.float64), norm(dtype))
    check_quantized(target, floats, scheme)


@pytest.mark.sanitize
@pytest.mark.parametrize("scheme", SCHEMES)
def test_norms_into_every_target(scheme: str) -> None:
    x, weight, bias = normal(1, 6, 50), normal(2, 50), normal(3, 50)
    both = make_target(6, 50, scheme, torch.float32)
    normalize(x, None, weight, bias, 1e-12, both, scheme)
    floats = floats_of(both, 50)
    check_quantized(both, floats, scheme)
    if scheme != "none":
        alone = make_target(6, 50, scheme)
        normalize(x, None, weight, bias, 1e-12, alone, scheme)
        check_quantized(alone, floats, scheme)


def test_a_norm_far_from_zero_keeps_what_varies() -> None:
    # The difference of moments near 1e8 would have no digit of a variance of 1.
    x = normal(1, 4, 512) + 1e4
    weight, bias = torch.ones(512, device=DEVICE), torch.zeros(512, device=DEVICE)
    target = make_target(4, 512, "none", torch.float32)
    normalize(x, None, weight, bias, 1e-12, target, "none")
    oracle = F.layer_norm(x.double(), (512,))
    # A float32 near 1e4 is rounded by up to 6e-4, and so is a mean at each level of its sum: by how
    # much, in four rows, is luck. A difference of moments would be off by 1 and more.
    slack = 10 * 2**-24 * 1e4
    baseline = F.layer_norm(x, (512,))
    assert_close_to_oracle(floats_of(target, 512), oracle, baseline, slack=slack)


def test_norms_of_rows_without_numbers() -> None:
    x, weight, bias = hard_rows(50)[9:], normal(2, 50), normal(3, 50)  # NaN; infinity; numbers
    target = make_target(3, 50, "symmetric", torch.float32)
    normalize(x, None, weight, bias, 1e-12, target, "symmetric")
    floats = floats_of(target, 50)
    assert floats.isnan().all(1).tolist() == [True, True, False]
    assert not floats[2].isnan().any()
    check_quantized(target, floats, "symmetric")


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_norm(dtype: torch.dtype) -> None:
    x, other = normal(1, 5, 40).to(dtype), normal(2, 5, 40).to(dtype)
    weight, bias = normal(3, 40).to(dtype), normal(4, 40).to(dtype)
    target = make_target(5, 40, "full_range", dtype)
    normalize(x, other, weight, bias, 0.0, target, "full_range", "no_norm")
    oracle = (x.double() + other.double()) * weight.double() + bias.double()
    floats = floats_of(target, 40)
    assert_close_to_oracle(floats, oracle, (x + other) * weight + bias)
    check_quantized(target, floats, "full_range")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", [None, "layer_norm", "no_norm"])
def test_embedding(dtype: torch.dtype, count: int, kind: str | None) -> None:
    tokens, features = 7, 40
    heights = (11, 2, 30)[:count]
    tables = tuple(normal(i, rows, features).to(dtype) for i, rows in enumerate(heights))
    tables = (spread(tables[0]), *tables[1:])
    generator = torch.Generator().manual_seed(5)
    ids = tuple(torch.randint(rows, (tokens,), generator=generator).to(DEVICE) for rows in heights)
    given = tuple(index.int() if i == 1 else index for i, index in enumerate(ids))
    weight, bias = normal(6, features).to(dtype), normal(7, features).to(dtype)
    target = make_target(tokens, features, "asymmetric", dtype)
    embed(given, tables, weight, bias, 1e-5, kind, target, "asymmetric")

    def expected(wanted: torch.dtype) -> Tensor:
        total = embedding_reference.embed(ids, tuple(table.to(wanted) for table in tables))
        w, b = weight.to(wanted), bias.to(wanted)
        if kind is None:
            return total
        return (
            F.layer_norm(total, (features,), w, b, 1e-5) if kind == "layer_norm" else total * w + b
        )

    floats = floats_of(target, features)
    assert_close_to_oracle(floats, expected(torch.float64), expected(dtype))
    if kind is None and dtype is torch.float32:
        assert torch.equal(floats, expected(dtype))
    check_quantized(target, floats, "asymmetric")


@pytest.mark.sanitize
def test_the_last_rows_of_tables() -> None:
    tables = tuple(normal(i, rows, 41) for i, rows in enumerate((11, 2, 30)))
    ids = tuple(torch.tensor([0, len(table) - 1] * 3, device=DEVICE)[:5] for table in tables)
    target = make_target(5, 41, "symmetric", torch.float32)
    embed(ids, tables, None, None, 0.0, None, target, "symmetric")
    floats = floats_of(target, 41)
    assert torch.equal(floats, embedding_reference.embed(ids, tables))
    check_quantized(target, floats, "symmetric")


@pytest.mark.parametrize("kind", [None, "layer_norm"])
def test_ids_outside_of_a_table_give_no_number(kind: str | None) -> None:
    table, weight = normal(1, 4, 20), torch.ones(20, device=DEVICE)
    ids = torch.tensor([3, 4, -1, 0], device=DEVICE)
    target = make_target(4, 20, "symmetric", torch.float32)
    embed((ids, ids * 0), (table, table), weight, weight, 1e-5, kind, target, "symmetric")
    floats = floats_of(target, 20)
    assert floats.isnan().all(1).tolist() == [False, True, True, False]
    assert not floats[::3].isnan().any()
    check_quantized(target, floats, "symmetric")


def test_what_a_program_holds() -> None:
    assert row_blocks(1, 1).columns == 16
    assert row_blocks(128, 768) == (1, 1024, 4)
    assert row_blocks(4096, 384) == (2, 512, 2)
    assert row_blocks(4096, 4096) == (2, 4096, 16)
    assert row_blocks(4096, MAX_COLUMNS) == (1, MAX_COLUMNS, 16)
    with pytest.raises(ValueError, match="rows of 16385 features: at most 16384"):
        row_blocks(1, MAX_COLUMNS + 1)


def test_wrong_arguments_are_named() -> None:
    x, ids = normal(1, 4, 4), torch.zeros(4, dtype=torch.int64, device=DEVICE)
    weight = torch.ones(4, device=DEVICE)
    target = make_target(4, 4, "symmetric", torch.float32)
    with pytest.raises(ValueError, match="features must lie side by side"):
        quantize_rows(x.t(), target, "symmetric")
    with pytest.raises(ValueError, match="give int8 rows to write"):
        quantize_rows(x, target._replace(q=None), "symmetric")
    with pytest.raises(ValueError, match=r"residual has strides \(1, 4\)"):
        normalize(x, x.t(), weight, weight, 1e-5, target, "symmetric")
    with pytest.raises(ValueError, match="kind 'rms_norm'"):
        normalize(x, None, weight, weight, 1e-5, target, "symmetric", "rms_norm")
    with pytest.raises(ValueError, match="2 tables, 1 ids"):
        embed((ids,), (x, x), None, None, 0.0, None, target, "symmetric")
    with pytest.raises(ValueError, match="with weight and bias"):
        embed((ids,), (x,), None, None, 0.0, "layer_norm", target, "symmetric")
    with pytest.raises(ValueError, match=r"ids\[0\] has strides"):
        embed((ids.repeat(2)[::2],), (x,), None, None, 0.0, None, target, "symmetric")
    with pytest.raises(ValueError, match=r"tables\[0\] has strides"):
        embed((ids,), (x.t(),), None, None, 0.0, None, target, "symmetric")
