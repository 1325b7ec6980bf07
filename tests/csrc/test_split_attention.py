"""Float attention on AMX tiles, each float in three bf16: as exact as the kernel of float32 FMA.

That kernel, which every call out of the parts' range and every short one gets, is the yardstick.
"""

from __future__ import annotations

import pytest
import torch

from sparse_runtime import _C

AVAILABLE = {row["name"] for row in _C.isas() if row["available"]}
pytestmark = pytest.mark.skipif("amx" not in AVAILABLE, reason="this processor has no AMX")
SLOTS = 64
TOLERANCE = 3e-6  # of the largest value, as for every float kernel
INFINITY, NAN = float("inf"), float("nan")


def aligned(*shape: int) -> torch.Tensor:
    """Uninitialized floats on a cache line."""
    count = int(torch.Size(shape).numel())
    room = torch.empty(count + 16)
    skip = (-room.data_ptr() % 64) // 4
    return room[skip : skip + count].view(shape)


def run(
    qkv: torch.Tensor,
    lengths: list[int],
    heads: int,
    isa: str = "amx",
    *,
    scale: float | None = None,
    bias: torch.Tensor | None = None,
    cuts: int = 1,
) -> torch.Tensor:
    """[tokens, 3 * features] -> [tokens, features]; each sequence's queries in ``cuts`` calls."""
    tokens, width = qkv.shape
    features, panels = width // 3, -(-tokens // SLOTS)
    rows = torch.full((panels * SLOTS, width), NAN)
    rows[:tokens] = qkv
    x = aligned(panels, width, SLOTS)
    x.copy_(rows.view(panels, SLOTS, width).transpose(1, 2))
    out = aligned(panels, features, SLOTS).fill_(1e9)
    by_key = None if bias is None else bias.transpose(1, 2).contiguous()
    head_size = features // heads
    scale = head_size**-0.5 if scale is None else scale
    start = 0
    for length in lengths:
        for call in range(heads * cuts):
            head, cut = divmod(call, cuts)
            first, end = length * cut // cuts, length * (cut + 1) // cuts
            if first == end:
                continue
            _C.panel_attention(
                "float", x.data_ptr(), tokens, heads, head_size, scale,
                0 if by_key is None else by_key.data_ptr(), 0 if bias is None else bias.shape[1],
                out.data_ptr(), head, start, length, 0, first, end - first, isa,
            )  # fmt: skip
        start += length
    got = out.transpose(1, 2).reshape(-1, features)
    assert bool((got[start:] == 1e9).all()), "a slot beyond the sequences was written"
    return got[:start]


def oracle(
    qkv: torch.Tensor,
    lengths: list[int],
    heads: int,
    scale: float | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Float64 [tokens, features]."""
    parts = []
    for part in qkv.double().split(lengths):
        q, k, v = part.unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if bias is not None:
            scores = scores + bias[:, : len(part), : len(part)].double()
        parts.append((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    return torch.cat(parts)


def assert_close(
    qkv: torch.Tensor,
    lengths: list[int],
    heads: int,
    *,
    scale: float | None = None,
    bias: torch.Tensor | None = None,
    cuts: int = 1,
) -> None:
    got = run(qkv, lengths, heads, scale=scale, bias=bias, cuts=cuts).double()
    expected = oracle(qkv, lengths, heads, scale, bias)
    top = float(expected.abs().max())
    assert float((got - expected).abs().max()) <= TOLERANCE * top
    fma = run(qkv, lengths, heads, "avx512", scale=scale, bias=bias, cuts=cuts).double()
    assert not torch.equal(got, fma), "these calls were to take the other kernel"
    # One of the six products left out: ten times as much.
    assert float((got - expected).square().mean()) <= 1.5 * float((fma - expected).square().mean())


@pytest.mark.parametrize(
    ("lengths", "heads", "head_size", "cuts"),
    [
        ([96], 1, 64, 1),  # the shortest
        ([97], 2, 32, 1),  # a vector with one query
        ([128, 128], 2, 64, 1),  # whole panels
        ([5, 111, 130], 2, 64, 1),  # none aligned; the first too short
        ([37, 300], 1, 64, 3),  # calls that hold some queries, from any slot
        ([16, 112], 1, 64, 1),  # a group across two panels
        ([510], 1, 64, 1),  # one block
        ([5, 511], 1, 64, 2),  # two, the second of four keys
        ([9, 1100], 1, 32, 1),  # three, and more than eight groups
        ([100], 3, 26, 1),  # features off every tile
        ([100], 2, 50, 1),
        ([101], 1, 63, 1),
        ([99], 1, 96, 1),  # three steps of features
        ([120], 1, 126, 1),
        ([130], 1, 128, 1),
        ([96], 1, 160, 1),
    ],
)
def test_as_exact_as_fma(lengths: list[int], heads: int, head_size: int, cuts: int) -> None:
    torch.manual_seed(sum(lengths))
    qkv = torch.randn(sum(lengths), 3 * heads * head_size)
    assert_close(qkv, lengths, heads, cuts=cuts)


@pytest.mark.parametrize("head_size", [2, 6, 16, 34, 40])  # more than a third would be padding
@pytest.mark.parametrize("length", [1, 16, 95, 130])
def test_what_does_not_pay_takes_fma(length: int, head_size: int) -> None:
    torch.manual_seed(length)
    qkv = torch.randn(length, 6 * head_size)
    assert torch.equal(run(qkv, [length], 2), run(qkv, [length], 2, "avx512"))


@pytest.mark.parametrize("lengths", [[5, 210], [3, 700]])  # 700: two blocks
def test_bias_is_added_by_position(lengths: list[int]) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3 * 2 * 32)
    bias = 3 * torch.randn(2, max(lengths), max(lengths))
    assert_close(qkv, lengths, 2, scale=0.2, bias=bias, cuts=2)
    assert_close(qkv, lengths, 2, scale=0.2, bias=bias)


def test_bias_that_hides_keys_and_queries() -> None:
    torch.manual_seed(1)
    qkv = torch.randn(600, 96)
    bias = torch.zeros(1, 600, 600)
    bias[:, :, 100:550] = -INFINITY
    bias[:, 50:200, :300] = torch.finfo(torch.float32).min
    assert_close(qkv, [600], 1, bias=bias)
    bias[:, 7] = -INFINITY  # a query that sees nothing
    bias[:, 9, 3] = NAN
    bias[:, 11, 3] = INFINITY
    got = run(qkv, [600], 1, bias=bias)
    assert got.isnan().all(1).nonzero().flatten().tolist() == [7, 9, 11]
    assert not bool(got.isnan().any(1)[[6, 8, 10, 12]].any())


@pytest.mark.parametrize("length", [110, 600])
def test_large_scores_pick_one_key(length: int) -> None:
    """Scores to +-400: exp() of any of them alone is infinite or zero."""
    torch.manual_seed(2)
    qkv = torch.randn(length, 192)
    qkv[:, :128] *= 7
    got = run(qkv, [length], 1, scale=1.0).double()
    fma = run(qkv, [length], 1, "avx512", scale=1.0).double()
    expected = oracle(qkv, [length], 1, 1.0, None)
    assert not torch.equal(got, fma)
    error = float((got - expected).abs().max())
    assert error <= 2 * float((fma - expected).abs().max()) + 1e-7


@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("row", [0, 1, 2])  # queries, keys, values
def test_not_finite_stays_where_it_is(row: int, bad: float) -> None:
    torch.manual_seed(3)
    lengths, heads, head_size = [100, 120, 101], 2, 32  # share vectors with their neighbours
    qkv = torch.randn(sum(lengths), 3 * heads * head_size)
    clean = run(qkv, lengths, heads)
    qkv[107, (row * heads + 1) * head_size + 3] = bad  # the second sequence's second head
    got = run(qkv, lengths, heads)
    fma = run(qkv, lengths, heads, "avx512")
    assert not bool(fma[100:220, head_size:].isfinite().all())
    torch.testing.assert_close(
        got[100:220, head_size:], fma[100:220, head_size:], rtol=0, atol=0, equal_nan=True
    )
    got[100:220, head_size:] = clean[100:220, head_size:]
    assert torch.equal(got, clean)


@pytest.mark.parametrize(
    ("queries", "keys", "values"),
    [
        (1e30, 1.0, 1.0),
        (1e30, 1e30, 1.0),  # products are infinite
        (1.0, 1e18, 1.0),
        (1.0, 1.0, 1e38),
        (1.0, 1.0, 1e-38),
        (1.0, 1.0, 1e-42),
        (1e-38, 1e-38, 1e-30),
        (1e6, 1e6, 1.0),  # scores whose rounding is more than the range of an exponent
    ],
)
def test_out_of_range_takes_fma(queries: float, keys: float, values: float) -> None:
    torch.manual_seed(4)
    qkv = torch.randn(600, 96) * torch.tensor([queries, keys, values]).repeat_interleave(32)
    got, fma = run(qkv, [600], 1), run(qkv, [600], 1, "avx512")
    torch.testing.assert_close(got, fma, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scale", [0.0, -0.5, 1.5, NAN])
def test_scales_out_of_range_take_fma(scale: float) -> None:
    torch.manual_seed(5)
    qkv = torch.randn(100, 96)
    got, fma = run(qkv, [100], 1, scale=scale), run(qkv, [100], 1, "avx512", scale=scale)
    torch.testing.assert_close(got, fma, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("queries", "keys", "values"),
    [
        (1e-38, 1.0, 1.0),  # no score above 1e-37: all weights are the same
        (5e16, 1e-17, 1.0),
        (1e-25, 5e16, 1e37),
        (1.0, 1.0, 1e-26),
    ],
)
def test_ends_of_the_range(queries: float, keys: float, values: float) -> None:
    torch.manual_seed(6)
    qkv = torch.randn(130, 96) * torch.tensor([queries, keys, values]).repeat_interleave(32)
    assert_close(qkv, [130], 1)


def test_zeros_of_either_sign() -> None:
    torch.manual_seed(7)
    qkv = torch.randn(110, 96)
    qkv[:, :64] = -0.0
    assert_close(qkv, [110], 1)
    qkv[:, 64:] = -0.0
    assert torch.equal(run(qkv, [110], 1), torch.zeros(110, 32))
