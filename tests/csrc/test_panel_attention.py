"""Attention over panels against a float64 oracle, every form on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_runtime import _C

ISAS = [row["name"] for row in _C.isas() if row["available"]]
RUNS = [
    (isa, form) for isa in ISAS for form in ("float", "bf16") if _C.panel_attention_runs(form, isa)
]
SLOTS = 64
TOLERANCE = {"float": 3e-6, "bf16": 1.2e-2}  # of the largest value; bf16 keeps 8 bits


def to_panels(qkv: torch.Tensor, form: str, filled: int) -> torch.Tensor:
    """float32 [tokens, 3 * features] -> panels; unused slots hold NaN."""
    tokens, features = qkv.shape
    panels = -(-tokens // filled)
    full = torch.full((panels, SLOTS, features), float("nan"))
    used = torch.full((panels * filled, features), float("nan"))
    used[:tokens] = qkv
    full[:, :filled] = used.unflatten(0, (panels, filled))
    full = full.transpose(1, 2).contiguous()
    if form == "float":
        return full
    halves = full.to(torch.bfloat16)
    padded = torch.zeros(panels, -(-features // 64) * 64, SLOTS, dtype=torch.bfloat16)
    keys_end = features // 3 * 2
    pairs = halves[:, :keys_end].reshape(panels, keys_end // 2, 2, SLOTS).transpose(2, 3)
    padded[:, :keys_end] = pairs.reshape(panels, keys_end, SLOTS)
    padded[:, keys_end:features] = halves[:, keys_end:]
    return padded


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same contents on a cache line."""
    room = torch.empty(tensor.numel() + 64, dtype=tensor.dtype)
    skip = (-room.data_ptr() % 64) // tensor.element_size()
    out = room[skip : skip + tensor.numel()].view(tensor.shape)
    return out.copy_(tensor)


def oracle(qkv: torch.Tensor, heads: int, scale: float, bias: torch.Tensor | None) -> torch.Tensor:
    """One sequence, float64 [length, features]."""
    q, k, v = qkv.double().unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
    scores = q @ k.transpose(1, 2) * scale
    if bias is not None:
        scores = scores + bias.double()
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def run(
    qkv: torch.Tensor,
    lengths: list[int],
    heads: int,
    scale: float,
    form: str,
    isa: str,
    *,
    bias: torch.Tensor | None = None,
    cuts: int = 1,
    filled: int = SLOTS,
) -> torch.Tensor:
    """All heads of all sequences; each sequence's queries in ``cuts`` calls."""
    tokens, width = qkv.shape
    panels = aligned(to_panels(qkv, form, filled))
    features = width // 3
    out = aligned(torch.full((panels.shape[0], features, SLOTS), 1e9))
    by_key = None if bias is None else bias.transpose(1, 2).contiguous()
    span = 0 if bias is None else bias.shape[1]
    start = 0
    for length in lengths:
        for head in range(heads):
            for cut in range(cuts):
                first, end = length * cut // cuts, length * (cut + 1) // cuts
                if first == end:
                    continue
                _C.panel_attention(
                    form, panels.data_ptr(), tokens, heads, features // heads, scale,
                    0 if by_key is None else by_key.data_ptr(), span, out.data_ptr(),
                    head, start, length, 0, first, end - first, isa, None, filled,
                )  # fmt: skip
        start += length
    slots = out.transpose(1, 2)
    rows = slots[:, :filled].reshape(-1, features)
    assert bool((rows[start:] == 1e9).all()), "a slot beyond the sequences was written"
    assert bool((slots[:, filled:] == 1e9).all()), "a slot beyond those that are filled was written"
    return rows[:start]


CASES = [
    ([1], 2, 32),  # one token
    ([2, 3, 5, 1, 7], 2, 16),  # five sequences in two vectors; half a step of features
    ([15, 16, 17, 31], 1, 64),  # around a vector
    ([33, 63, 64, 65], 2, 32),  # around a step and a panel, none aligned
    ([127, 129], 1, 64),  # several panels
    ([5, 384], 1, 32),  # many panels from an odd start
    ([9, 1100], 1, 32),  # more keys than one block
    ([40, 23], 3, 26),  # head size off every tile
    ([70], 1, 160),  # more features than the tiles hold at a time
]


@pytest.mark.parametrize(("isa", "form"), RUNS)
@pytest.mark.parametrize(("lengths", "heads", "head_size"), CASES)
def test_close_to_the_oracle(
    isa: str, form: str, lengths: list[int], heads: int, head_size: int
) -> None:
    torch.manual_seed(sum(lengths))
    qkv = torch.randn(sum(lengths), 3 * heads * head_size)
    scale = head_size**-0.5
    got = run(qkv, lengths, heads, scale, form, isa, cuts=1 + len(lengths) % 3)
    expected = torch.cat([oracle(part, heads, scale, None) for part in qkv.split(lengths)])
    error = float((got.double() - expected).abs().max())
    assert error <= TOLERANCE[form] * float(expected.abs().max())


@pytest.mark.parametrize(("isa", "form"), [run for run in RUNS if run[0] != "amx"])
@pytest.mark.parametrize("filled", [16, 32])
@pytest.mark.parametrize("lengths", [[1], [128], [5, 43, 48, 33, 2, 100], [9, 530]])
def test_panels_that_are_not_filled_give_the_same(
    isa: str, form: str, filled: int, lengths: list[int]
) -> None:
    """One token; whole panels; sequences across several; more keys than one block."""
    torch.manual_seed(filled)
    qkv = torch.randn(sum(lengths), 96)
    bias = torch.randn(2, max(lengths), max(lengths))
    for given in (None, bias):
        full = run(qkv, lengths, 2, 0.3, form, isa, bias=given, cuts=2)
        torch.testing.assert_close(
            run(qkv, lengths, 2, 0.3, form, isa, bias=given, cuts=2, filled=filled),
            full, rtol=1e-5, atol=1e-5,
        )  # fmt: skip


@pytest.mark.parametrize(("isa", "form"), RUNS)
def test_bias_is_added_by_position(isa: str, form: str) -> None:
    torch.manual_seed(0)
    lengths, heads, head_size, span = [5, 21, 50], 2, 32, 50  # vectors that hold two sequences
    qkv = torch.randn(sum(lengths), 3 * heads * head_size)
    bias = 3 * torch.randn(heads, span, span)
    got = run(qkv, lengths, heads, 0.2, form, isa, bias=bias)
    parts = qkv.split(lengths)
    expected = torch.cat([oracle(p, heads, 0.2, bias[:, : len(p), : len(p)]) for p in parts])
    error = float((got.double() - expected).abs().max())
    assert error <= TOLERANCE[form] * float(expected.abs().max())


@pytest.mark.parametrize(("isa", "form"), RUNS)
def test_large_scores_do_not_overflow(isa: str, form: str) -> None:
    """Scores to +-400: exp() of any of them alone is infinite or zero."""
    torch.manual_seed(1)
    qkv = torch.randn(90, 96).round()  # exact in bf16, so that the softmax picks the same keys
    qkv[:, :64] *= 8
    got = run(qkv, [90], 1, 1.0, form, isa)
    expected = oracle(qkv, 1, 1.0, None)
    assert float((got.double() - expected).abs().max()) <= 2 * TOLERANCE[form] * 4


@pytest.mark.parametrize(("isa", "form"), RUNS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_scores_that_grow_with_the_position(isa: str, form: str, with_bias: bool) -> None:
    """What weights count from has to move again and again, also from one block to the next."""
    torch.manual_seed(3)
    length = 600
    qkv = torch.randn(length, 96).round()
    qkv[:, :32] = 1.0
    qkv[:, 32:64] = (torch.arange(length) // 4)[:, None] / 8  # exact in bf16: eight bits
    bias = (8 * torch.randn(1, length, length)).round() if with_bias else None
    got = run(qkv, [length], 1, 0.5, form, isa, bias=bias)
    expected = oracle(qkv, 1, 0.5, bias)
    assert float((got.double() - expected).abs().max()) <= 2 * TOLERANCE[form] * 4


@pytest.mark.parametrize(("isa", "form"), RUNS)
@pytest.mark.parametrize("mask", [-1e10, 1e10, -3e37, -2.9e38])
def test_bias_that_hides_all_keys_alike(isa: str, form: str, mask: float) -> None:
    """Beside it float32 has no place for a score: all keys weigh the same."""
    torch.manual_seed(4)
    qkv = torch.randn(50, 96)
    got = run(qkv, [50], 1, 0.2, form, isa, bias=torch.full((1, 50, 50), mask))
    expected = qkv[:, 64:].double().mean(0).expand(50, 32)
    error = float((got.double() - expected).abs().max())
    assert error <= TOLERANCE[form] * float(expected.abs().max())


@pytest.mark.parametrize(("isa", "form"), RUNS)
def test_a_key_hidden_by_minus_infinity_has_no_weight(isa: str, form: str) -> None:
    torch.manual_seed(6)
    qkv = torch.randn(50, 96)
    bias = torch.zeros(1, 50, 50).masked_fill(torch.ones(50, 50).triu(1).bool(), -torch.inf)
    got = run(qkv, [50], 1, 0.2, form, isa, bias=bias)
    expected = oracle(qkv, 1, 0.2, bias)
    error = float((got.double() - expected).abs().max())
    assert error <= TOLERANCE[form] * float(expected.abs().max())


@pytest.mark.parametrize(("isa", "form"), RUNS)
@pytest.mark.parametrize("before", [9, 31, 63])  # the first step has all eight keys, or one
def test_the_place_in_the_stream_changes_sums_alone(isa: str, form: str, before: int) -> None:
    torch.manual_seed(5)
    qkv = torch.randn(before + 100, 192)
    qkv[:, :64] *= 3  # weights leave what they count from and it moves
    first = run(qkv[before:].contiguous(), [100], 1, 0.3, form, isa)
    later = run(qkv, [before, 100], 1, 0.3, form, isa)[before:]
    torch.testing.assert_close(later, first, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("isa", "form"), RUNS)
def test_nan_stays_in_its_sequence(isa: str, form: str) -> None:
    torch.manual_seed(2)
    lengths = [10, 12, 30]  # the second shares vectors and steps with both others
    qkv = torch.randn(52, 96)
    clean = run(qkv, lengths, 1, 0.2, form, isa)
    qkv[15] = float("nan")
    got = run(qkv, lengths, 1, 0.2, form, isa)
    assert bool(got[10:22].isnan().all())
    torch.testing.assert_close(got[:10], clean[:10], rtol=0, atol=0)
    torch.testing.assert_close(got[22:], clean[22:], rtol=0, atol=0)


def test_bad_arguments_are_named() -> None:
    x = np.zeros(64 * 6, dtype=np.float32)
    arguments = [x.ctypes.data, 4, 1, 2, 1.0, 0, 0, x.ctypes.data, 0, 0, 4, 0, 0, 4, "generic"]
    with pytest.raises(ValueError, match='form: expected float, bf16 or int8; got "half"'):
        _C.panel_attention("half", *arguments)
    arguments[10] = 5
    with pytest.raises(ValueError, match=r"length: expected a value in 1..4; got 5"):
        _C.panel_attention("float", *arguments)
