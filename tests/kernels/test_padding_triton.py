"""Padding taken away and put back by kernels, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.encoders.pooling import pool as pool_padded
from sparse_runtime.kernels.padding import (
    pool_triton,
    reference,
    repad_triton,
    scan_triton,
    unpad_triton,
)
from sparse_runtime.kernels.padding.operands import Padded, Stream
from sparse_runtime.kernels.padding.pool_triton import pool
from sparse_runtime.kernels.padding.repad_triton import repad
from sparse_runtime.kernels.padding.scan_triton import scan
from sparse_runtime.kernels.padding.unpad_triton import unpad

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PADDING_ID = 1

# One token, one block of columns, several with a part left over, no columns, rows past one block
# of lengths.
SHAPES = [(1, 1), (3, 16), (2, 37), (2, 0), (19, 3)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles, so that small batches are several of them: the interpreter is slow."""
    for module in (scan_triton, unpad_triton):
        monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(repad_triton, "SAMPLES", 4)
    monkeypatch.setattr(repad_triton, "FEATURES", 16)
    monkeypatch.setattr(pool_triton, "TOKENS", 16)
    monkeypatch.setattr(pool_triton, "FEATURES", 16)


def random_mask(batch: int, columns: int, kind: str) -> Tensor | None:
    generator = torch.Generator().manual_seed(batch + columns)
    if kind == "none":
        return None
    if kind == "holes":  # with rows that keep nothing or everything
        keep = torch.rand(batch, columns, generator=generator) < 0.6
        keep[0], keep[-1] = True, False
        return keep
    lengths = torch.randint(0, columns + 1, (batch, 1), generator=generator)
    kept = torch.arange(columns) < lengths
    return kept.flip(1) if kind == "left" else kept


def make(
    batch: int, columns: int, kind: str, dtype: torch.dtype = torch.int64, extra: str = ""
) -> Padded:
    generator = torch.Generator().manual_seed(7)
    ids, types, positions = torch.randint(0, 9, (3, batch, columns), generator=generator)
    mask = random_mask(batch, columns, kind)
    return Padded(
        ids.to(DEVICE),
        None if mask is None else mask.to(dtype).to(DEVICE),
        types.int().to(DEVICE) if "types" in extra else None,
        positions.to(DEVICE) if "positions" in extra else None,
    )


def check(padded: Padded, padding_id: int | None) -> None:
    """Scan and unpad equal the reference, in buffers of one type as of the other."""
    report = scan(padded, padding_id)
    assert torch.equal(report, reference.scan(padded, padding_id))
    tokens, batch = int(report[0].sum()), len(padded.ids)
    for spare, kind in ((0, torch.int64), (21, torch.int32)):
        streams = []
        for _ in range(2):
            fields = (torch.full((tokens + spare,), 77, dtype=kind) for _ in range(5))
            starts = torch.full((batch + 1,), 77, dtype=torch.int32)
            streams.append(Stream(*(field.to(DEVICE) for field in (*fields, starts))))
        unpad(padded, padding_id, report[0], tokens, streams[0])
        reference.unpad(padded, padding_id, streams[1])
        for name, found, expected in zip(Stream._fields, *streams, strict=True):
            assert torch.equal(found, expected), name


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("shape", SHAPES)
def test_streams_equal_the_reference(shape: tuple[int, int], kind: str) -> None:
    check(make(*shape, kind), None)
    check(make(*shape, kind, extra="types positions"), None)
    check(make(*shape, kind, extra="types"), PADDING_ID)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.float16, torch.float64]
)
def test_masks_of_every_type(dtype: torch.dtype) -> None:
    check(make(4, 9, "holes", dtype), None)


def test_irregular_masks_are_counted() -> None:
    mask = torch.tensor([[1.0, 0.0, -0.0], [0.5, torch.nan, torch.inf], [-1.0, 2.0, 1.0]])
    padded = Padded(torch.zeros(3, 3, dtype=torch.int32, device=DEVICE), mask.to(DEVICE))
    assert scan(padded, None)[2].tolist() == [0, 3, 2]
    check(padded, None)


def test_bounds_are_those_of_real_tokens_and_of_64_bits() -> None:
    ids = torch.tensor([[2**40, -(2**50), 5], [1, 2, 3]], device=DEVICE)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]], device=DEVICE)
    report = scan(Padded(ids, mask), PADDING_ID)
    assert report[3:5, 0].tolist() == [5, 2**40]
    assert report[3:5, 1].tolist() == [2**63 - 1, -(2**63)]


@pytest.mark.sanitize
def test_slices_of_wider_batches_and_shared_positions() -> None:
    wide = torch.arange(60, device=DEVICE).view(3, 20)
    mask = (wide % 3 > 0).int()
    # rows further apart than they are long, columns not side by side, one row of positions
    for at in (slice(2, 9), slice(0, 20, 2)):
        ids = wide[:, at]
        for positions in (ids[:1], ids[:1].expand(3, -1)):
            check(Padded(ids, mask[:, at], None, positions), None)


def test_no_rows() -> None:
    check(Padded(torch.zeros(0, 4, dtype=torch.int64, device=DEVICE)), None)


def test_only_wanted_buffers_are_written() -> None:
    padded = make(3, 5, "holes")
    tokens = int(scan(padded, None)[0].sum())
    columns = torch.zeros(tokens, dtype=torch.int32, device=DEVICE)
    stream = Stream(None, None, None, columns, None, None)
    unpad(padded, None, scan(padded, None)[0], tokens, stream)
    assert padded.mask is not None
    assert torch.equal(columns.long(), padded.mask.nonzero()[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
# One look at the index, two and more; a part of a tile of features, one, several with a part.
@pytest.mark.parametrize(
    ("rows", "features"), [(1, 1), (9, 16), pytest.param(75, 33, marks=pytest.mark.sanitize)]
)
def test_repad_equals_the_reference(rows: int, features: int, dtype: torch.dtype) -> None:
    for share in (0.0, 0.1, 0.6, 1.0):
        kept = torch.rand(rows, generator=torch.Generator().manual_seed(rows)) < share
        index = kept.nonzero().squeeze(1).to(DEVICE)
        tokens = torch.randn(len(index) + 3, features + 5).to(dtype)[:, 2 : features + 2].to(DEVICE)
        for kind in (torch.int64, torch.int32):
            found = repad(tokens, index.to(kind), rows)
            assert torch.equal(found, reference.repad(tokens, index, rows))


def test_repad_nothing_and_everything() -> None:
    tokens = torch.randn(20, 3, device=DEVICE)
    empty = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert not repad(tokens[:0], empty, 20).any()
    assert torch.equal(repad(tokens, torch.arange(20, device=DEVICE), 20), tokens)
    assert repad(tokens[:0], empty, 0).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# A part of a tile of tokens and features, whole tiles, several with parts.
@pytest.mark.parametrize(("columns", "features"), [(5, 7), (16, 16), (37, 35)])
def test_pool_equals_the_padded_one(columns: int, features: int, dtype: torch.dtype) -> None:
    mask = random_mask(4, columns, "holes")
    assert mask is not None
    mask[-1, -1] = True
    generator = torch.Generator().manual_seed(columns)
    padded = torch.randn(4, columns, features, generator=generator).to(dtype)
    padded[1, :, 0] = padded[2, :, 1] = -0.0
    padded[~mask] = 0
    starts = torch.cat([torch.zeros(1), mask.sum(1).cumsum(0)]).int().to(DEVICE)
    stream = torch.cat([padded[mask], torch.full((2, features), torch.nan).to(dtype)]).to(DEVICE)
    at = torch.cat([mask.nonzero()[:, 1], torch.zeros(2)]).int().to(DEVICE)
    found = pool(stream, starts, at, reference.POOLINGS)
    walked = reference.pool(stream, starts, at, reference.POOLINGS)
    expected = pool_padded(padded, mask, reference.POOLINGS)
    exact = pool_padded(padded.double(), mask, reference.POOLINGS)
    # A rounding to the result's type, and those of sums in float32.
    bound = torch.finfo(dtype).eps * exact.abs() + 1e-5 * padded.abs().max()
    for other in (found.cpu(), walked.cpu(), expected):
        assert ((other.double() - exact).abs() <= bound).all()


@pytest.mark.sanitize
def test_pool_of_hard_numbers() -> None:
    nan, inf = torch.nan, torch.inf
    tokens = torch.tensor([[nan, inf, -inf, 3e38, -0.0], [1.0, 1.0, 1.0, 3e38, -0.0]])
    tokens = tokens.to(DEVICE)
    starts = torch.tensor([0, 2, 2], dtype=torch.int32, device=DEVICE)  # the second has no tokens
    at = torch.tensor([3, 5], device=DEVICE)
    found = pool(tokens, starts, at, reference.POOLINGS)
    expected = reference.pool(tokens, starts, at, reference.POOLINGS)
    torch.testing.assert_close(found, expected, equal_nan=True)
    by_mode = dict(zip(reference.POOLINGS, found.view(2, 6, 5).unbind(1), strict=True))
    assert by_mode["max"][0, 0].isnan() and by_mode["max"][0, 1] == inf
    assert (by_mode["max"][1] == -inf).all()
    assert not by_mode["cls"][1].any() and not by_mode["lasttoken"][1].any()
    assert by_mode["mean"][1].isnan().all() and by_mode["weightedmean"][1].isnan().all()


def test_an_unknown_pooling_is_refused() -> None:
    tokens, starts = torch.zeros(1, 2), torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"modes: expected some of .*'cls'.* got 'median'"):
        pool(tokens, starts, starts, ("median",))
