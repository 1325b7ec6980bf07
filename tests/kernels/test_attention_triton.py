"""Attention over a stream of sequences: floats bounded by PyTorch's own error, integers exact."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.kernels.attention import varlen
from sparse_runtime.kernels.attention.attention_triton import attention
from sparse_runtime.kernels.attention.reference import attention as reference
from sparse_runtime.kernels.attention.schedule import (
    Config,
    default_config,
    most_query_blocks,
    query_blocks,
)
from sparse_runtime.kernels.linear.operands import SCHEMES, Target
from sparse_runtime.kernels.linear.reference import (
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_rows_full_range,
    quantize_static,
)
from sparse_runtime.testing import assert_close_to_oracle, attention_slack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
LOOP = Config(16, 16, 4, 2)
SINGLE = Config(16, 64, 4, 1, single=True)
STATIC = (0.01, -3, -120, 119)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def stream(lengths: list[int], width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """qkv within wider rows, NaN beside them and in two tokens of no sequence behind them."""
    rows = torch.full((sum(lengths) + 2, 3 * width + 5), torch.nan, dtype=dtype, device=DEVICE)
    rows[:-2, : 3 * width] = normal(sum(lengths), sum(lengths), 3 * width).to(dtype)
    return rows[:, : 3 * width]


def make_target(rows: int, features: int, scheme: str, dtype: torch.dtype, blocks: int) -> Target:
    static = scheme == "static"
    scale, zero = torch.full((rows,), 7.0), torch.full((rows,), 7, dtype=torch.int32)
    if static:
        scale, zero = torch.tensor(STATIC[:1]), torch.tensor(STATIC[1:2], dtype=torch.int32)
    return Target(
        floats=torch.full((rows, features + 2), 7.0, dtype=dtype, device=DEVICE),
        floats_stride=features + 2,
        q=None
        if scheme == "none"
        else torch.full((rows, features + 3), 99, dtype=torch.int8, device=DEVICE),
        q_stride=features + 3,
        scale=scale.to(DEVICE),
        zero=zero.to(DEVICE) if static or scheme == "asymmetric" else None,
        low=STATIC[2] if static else -128,
        high=STATIC[3] if static else 127,
        ranges=torch.zeros(2, rows, dtype=torch.int32, device=DEVICE),
        counters=torch.zeros(blocks, dtype=torch.int32, device=DEVICE),
    )


def run(
    qkv: Tensor,
    lengths: list[int],
    heads: int,
    scheme: str = "none",
    config: Config = LOOP,
    scale: float = 0.2,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Target]:
    """Floats of the sequences' tokens, and where everything went."""
    schedule = query_blocks(lengths, config.block_q)
    schedule = query_blocks(lengths, config.block_q, len(schedule) + 2).to(DEVICE)
    features, tokens = qkv.shape[1] // 3, sum(lengths)
    target = make_target(len(qkv), features, scheme, qkv.dtype, len(schedule))
    attention(qkv, schedule, heads, scale, bias, positions, target, scheme, config)
    assert target.floats is not None and target.ranges is not None and target.counters is not None
    # Nothing beside the rows, nothing in rows of no sequence, ready for the next launch.
    assert (target.floats[:, features:] == 7).all() and (target.floats[tokens:] == 7).all()
    assert not target.ranges.any() and not target.counters.any()
    return target.floats[:tokens, :features], target


def check_quantized(target: Target, floats: Tensor, scheme: str) -> None:
    assert target.q is not None and target.scale is not None
    tokens, features = floats.shape
    assert (target.q[:, features:] == 99).all() and (target.q[tokens:] == 99).all()
    q, x = target.q[:tokens, :features], floats.float()
    if scheme == "static":
        assert torch.equal(q.int(), quantize_static(x, *STATIC))
        return
    assert (target.scale[tokens:] == 7).all()
    if scheme == "asymmetric":
        expected, scale, zero = quantize_rows_asymmetric(x)
        expected = (expected - 128).to(torch.int8)
        assert target.zero is not None and torch.equal(target.zero[:tokens], zero - 128)
    else:
        expected, scale = (quantize_rows if scheme == "symmetric" else quantize_rows_full_range)(x)
    torch.testing.assert_close(target.scale[:tokens], scale, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(q, expected)


# lengths, heads, head size
HAZARDS = [
    ([1], 1, 32),  # one token: a softmax of one
    ([16], 1, 16),  # exactly one block of queries and tile of keys
    ([33, 1, 16, 40], 2, 20),  # off the blocks; columns of a head padded to 32
    ([5, 37], 12, 64),  # BERT's heads, less than a block first
    ([18], 1, 128),  # wide heads
    ([0, 3, 0], 2, 8),  # sequences without tokens; heads narrower than a tile
]


@pytest.mark.parametrize("config", [LOOP, SINGLE])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("lengths", "heads", "head_size"), HAZARDS)
def test_equals_the_reference(
    lengths: list[int], heads: int, head_size: int, dtype: torch.dtype, config: Config
) -> None:
    qkv = stream(lengths, heads * head_size, dtype)
    floats, target = run(qkv, lengths, heads, "symmetric", config)
    real = qkv[: sum(lengths)]
    oracle = reference(real.double(), lengths, heads, 0.2)
    # A softmax of one costs PyTorch nothing, and a kernel its exponential and its division.
    slack = attention_slack(real, lengths, heads, 0.2)
    assert_close_to_oracle(floats, oracle, reference(real, lengths, heads, 0.2), slack=slack)
    check_quantized(target, floats, "symmetric")


@pytest.mark.sanitize
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("features", [(2, 20), (3, 32)])  # padded columns; features off a tile
def test_every_target(scheme: str, features: tuple[int, int]) -> None:
    heads, head_size = features
    qkv = stream([19, 30], heads * head_size, torch.bfloat16)
    floats, target = run(qkv, [19, 30], heads, scheme)
    if scheme != "none":
        check_quantized(target, floats, scheme)


@pytest.mark.sanitize
@pytest.mark.parametrize("config", [LOOP, SINGLE])
@pytest.mark.parametrize("dtype", FLOATS)
def test_bias_by_positions(dtype: torch.dtype, config: Config) -> None:
    lengths, heads, span = [21, 1, 34], 3, 40
    qkv, bias = stream(lengths, heads * 16, dtype), normal(1, heads, span, span).to(dtype) * 2
    # MPNet counts from 2; in int32 and int64.
    positions = torch.cat([torch.arange(2, 2 + n) for n in lengths]).to(DEVICE)
    given = positions.int() if config is LOOP else positions
    floats, _ = run(qkv, lengths, heads, "none", config, bias=bias, positions=given)

    def expected(kind: torch.dtype) -> Tensor:
        return reference(qkv[:-2].to(kind), lengths, heads, 0.2, bias.to(kind), positions)

    assert_close_to_oracle(floats, expected(torch.float64), expected(dtype))


@pytest.mark.parametrize("config", [LOOP, SINGLE])
def test_scores_that_overflow_an_exponential(config: Config) -> None:
    qkv = stream([40], 32)
    qkv[:, :64] *= 100  # scores of thousands, the largest in any tile
    floats, _ = run(qkv, [40], 1, "none", config)
    oracle, baseline = (
        reference(qkv[:-2].to(kind), [40], 1, 0.2) for kind in (torch.float64, torch.float32)
    )
    # Scores of thousands have errors of 1e-3, which count where keys are about equal: in a row or
    # two, by luck. A maximum that is not taken away overflows; one of another tile is off by more.
    slack = attention_slack(qkv[:-2], [40], 1, 0.2, roundings=32**0.5)
    assert_close_to_oracle(floats, oracle, baseline, slack=slack)


@pytest.mark.parametrize("config", [LOOP, SINGLE])
def test_a_key_of_minus_infinity_is_not_attended(config: Config) -> None:
    qkv = stream([40], 16)
    qkv[:, 0] = 1.0
    qkv[:20, 16] = -torch.inf  # the first tile has no finite score
    floats, _ = run(qkv, [40], 1, "none", config)
    oracle = reference(qkv[:-2].double(), [40], 1, 0.2)
    assert oracle.isfinite().all()
    assert_close_to_oracle(floats, oracle, reference(qkv[:-2], [40], 1, 0.2))


@pytest.mark.parametrize("config", [LOOP, SINGLE])
def test_what_is_no_number_stays_in_its_sequence_and_head(config: Config) -> None:
    lengths, heads = [20, 20, 9], 2
    qkv = stream(lengths, heads * 16)
    qkv[25, 2 * 16 + 3] = torch.nan  # a key of the second sequence's first head
    qkv[45, 4 * 16 + 16 + 2] = torch.inf  # a value of the third's second head
    floats, target = run(qkv, lengths, heads, "asymmetric", config)
    expected = reference(qkv[:-2], lengths, heads, 0.2)
    assert torch.equal(floats.isnan(), expected.isnan())
    assert torch.equal(floats.isinf(), expected.isinf())
    assert expected[20:40, :16].isnan().all() and expected[40:, 18].isinf().all()
    check_quantized(target, floats, "asymmetric")


def test_a_sequence_longer_than_a_single_tile_gives_no_numbers() -> None:
    floats, _ = run(stream([20, 5], 16), [20, 5], 1, "none", Config(16, 16, 4, 1, single=True))
    assert floats[:20].isnan().all() and floats[20:].isfinite().all()


def test_no_tokens() -> None:
    qkv, empty = torch.empty(0, 48, device=DEVICE), query_blocks([], 16).to(DEVICE)
    assert empty.shape == (0, 3)
    target = make_target(0, 16, "symmetric", torch.float32, 0)
    attention(qkv, empty, 1, 1.0, None, None, target, "symmetric", LOOP)


def test_schedule_covers_every_row_once_longest_first() -> None:
    lengths = [5, 0, 33, 16, 1]
    blocks = query_blocks(lengths, 16)
    assert blocks.tolist() == [
        *([5, 5, 38], [21, 5, 38], [37, 5, 38]),  # 33 tokens behind the first 5
        [38, 38, 54],
        [0, 0, 5],
        [54, 54, 55],
    ]
    padded = query_blocks(lengths, 16, 8)
    assert padded.dtype == torch.int32 and torch.equal(padded[:6], blocks)
    assert not padded[6:].any()
    with pytest.raises(ValueError, match="6 query blocks of 16 rows, a schedule of 5"):
        query_blocks(lengths, 16, 5)


def test_no_lengths_need_more_blocks_than_said() -> None:
    assert most_query_blocks(33, 1, 16) == 3 == len(query_blocks([33], 16))
    assert most_query_blocks(19, 3, 16) == 4 == len(query_blocks([17, 1, 1], 16))
    assert most_query_blocks(2, 5, 16) == 2 == len(query_blocks([1, 1, 0, 0, 0], 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_size", [20, 64, 256])
@pytest.mark.parametrize("longest", [1, 17, 128, 129, 512])
@pytest.mark.parametrize("sequences", [1, 32])
def test_default_tiles(longest: int, head_size: int, sequences: int, dtype: torch.dtype) -> None:
    for capability in (80, 90):
        config = default_config(head_size, longest, sequences, 12, dtype, capability)
        assert not config.single or longest <= config.block_k
        # Half of a block of queries, at most, waits for rows that are not there.
        assert config.block_q <= max(16, 2 * longest)
    with pytest.raises(ValueError, match="heads of 257 features"):
        default_config(257, longest, sequences, 12, dtype)


def test_default_tiles_of_base_models() -> None:
    bf16 = torch.bfloat16
    assert default_config(64, 128, 1, 12, bf16) == (16, 128, 4, 1, True)  # 96 programs, not 24
    assert default_config(64, 128, 32, 12, bf16) == (64, 128, 4, 1, True)
    assert default_config(64, 384, 32, 12, bf16) == (128, 64, 8, 3, False)


def test_wrong_arguments_are_named() -> None:
    qkv, blocks = normal(1, 4, 48), query_blocks([4], 16).to(DEVICE)
    target = make_target(4, 16, "symmetric", torch.float32, 1)

    def call(**changed: Any) -> None:
        given = {"qkv": qkv, "blocks": blocks, "heads": 1, "scale": 1.0, "bias": None}
        given |= {"positions": None, "target": target, "scheme": "symmetric", "config": LOOP}
        attention(**(given | changed))

    with pytest.raises(ValueError, match=r"must be \[tokens, 3 \* 5 heads"):
        call(heads=5)
    with pytest.raises(ValueError, match="features side by side"):
        call(qkv=normal(1, 48, 4).t())
    with pytest.raises(ValueError, match=r"scale 0\.0: must be positive"):
        call(scale=0.0)
    with pytest.raises(ValueError, match="must be int32"):
        call(blocks=blocks.long())
    with pytest.raises(ValueError, match=r"must be \[1 heads, span, span\]"):
        call(bias=normal(1, 2, 3, 3))
    with pytest.raises(ValueError, match="bias and positions go together"):
        call(bias=normal(1, 1, 3, 3))
    with pytest.raises(ValueError, match="ranges and 1 counters"):
        call(target=target._replace(ranges=None))


def test_varlen_says_why_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "NVIDIA GPU" in str(varlen.unavailable(torch.device("cpu"), torch.bfloat16, 64))
    monkeypatch.setattr(varlen, "_functions", lambda: (None, None))
    assert "has no torch.nn.attention.varlen" in str(
        varlen.unavailable(torch.device("cuda"), torch.bfloat16, 64)
    )
    with pytest.raises(RuntimeError, match=r"no torch\.nn\.attention\.varlen"):
        varlen.varlen_attention(*[torch.empty(0)] * 2, 0, 1, 1.0, torch.empty(0))


@pytest.mark.parametrize("in_place", [False, True])
def test_varlen_is_given_the_stream(in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's function runs on GPUs alone: what it is called with is held to its signature."""
    real = pytest.importorskip("torch.nn.attention.varlen")
    if "scale" not in inspect.signature(real.varlen_attn).parameters:
        pytest.skip("this torch's takes no scale, and is not used")
    lengths, heads = [5, 9], 2
    qkv = normal(1, 14, 3 * heads * 8)
    bounds = torch.tensor([0, 5, 14], dtype=torch.int32, device=DEVICE)
    out = torch.zeros(14, heads * 8 + 3, device=DEVICE)[:, : heads * 8]

    def plain(*arguments: Any, **options: Any) -> Tensor:
        given = inspect.signature(real.varlen_attn).bind(*arguments, **options).arguments
        assert given["max_q"] == given["max_k"] == 9 and given["cu_seq_k"] is given["cu_seq_q"]
        sides = [given[side].flatten(1) for side in ("query", "key", "value")]
        each = given["cu_seq_q"].diff().tolist()
        y = reference(torch.cat(sides, 1), each, given["query"].shape[1], given["scale"])
        return y.unflatten(1, (heads, -1))

    def into(result: Tensor, *arguments: Any, **options: Any) -> None:
        result.copy_(plain(*arguments, **options))

    monkeypatch.setattr(varlen, "_functions", lambda: (plain, into if in_place else None))
    varlen.varlen_attention(qkv, bounds, 9, heads, 0.3, out)
    torch.testing.assert_close(out, reference(qkv, lengths, heads, 0.3), rtol=0, atol=0)


@pytest.mark.skipif(DEVICE == "cpu", reason="FlashAttention runs on GPUs alone")
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_varlen_equals_the_reference(dtype: torch.dtype) -> None:
    if reason := varlen.unavailable(torch.device(DEVICE), dtype, 64):
        pytest.skip(reason)
    lengths, heads = [5, 128, 37], 12
    qkv = normal(1, 170, 3 * heads * 64).to(dtype)
    bounds = torch.tensor([0, 5, 133, 170], dtype=torch.int32, device=DEVICE)
    out = torch.empty(170, heads * 64, dtype=dtype, device=DEVICE)
    varlen.varlen_attention(qkv, bounds, 128, heads, 0.125, out)
    oracle = reference(qkv.double(), lengths, heads, 0.125)
    assert_close_to_oracle(out, oracle, reference(qkv, lengths, heads, 0.125))
