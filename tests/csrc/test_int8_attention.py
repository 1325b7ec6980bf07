"""Attention in static INT8 against the reference's exact integers, on every instruction set.

Exponentials differ from PyTorch's in their last bits, so a probability near the middle between two
levels may fall to the other one; everything else is exact.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_runtime import _C
from sparse_runtime.kernels.attention import reference
from sparse_runtime.kernels.linear.reference import Quantizer

ISAS = [row["name"] for row in _C.isas() if row["available"]]
POOL = _C.WorkspacePool()
PARTS = ("query", "key", "probabilities", "value", "scores", "context")

UNSIGNED = {
    "query": Quantizer(0.031, 117, 0, 255),
    "key": Quantizer(0.029, 140, 0, 255),
    "probabilities": Quantizer(1 / 255, 0, 0, 255),
    "value": Quantizer(0.033, 121, 0, 255),
}
SIGNED = {
    "query": Quantizer(0.03, 0, -128, 127),
    "key": Quantizer(0.03, 0, -127, 127),
    "probabilities": Quantizer(1 / 127, 0, -128, 127),  # stored with zero point 128
    "value": Quantizer(0.03, -5, -128, 127),
}
MIXED = {
    "query": Quantizer(0.031, 9, -128, 127),
    "key": Quantizer(0.03, 100, 0, 255),
    "probabilities": Quantizer(1 / 200, 3, 0, 255),
    "value": Quantizer(0.03, 0, -128, 127),
    "scores": Quantizer(0.21, 120, 0, 255),
    "context": Quantizer(0.02, 3, -128, 127),
}
SETS = {"unsigned": UNSIGNED, "signed": SIGNED, "mixed": MIXED}


def handle(quantizers: dict[str, Quantizer]) -> _C.AttentionQuantizers:
    return _C.AttentionQuantizers(*(quantizers.get(part) for part in PARTS))  # type: ignore[arg-type]


def run(
    qkv: Tensor,
    lengths: list[int],
    heads: int,
    scale: float,
    quantizers: dict[str, Quantizer],
    isa: str,
    *,
    threads: int = 2,
    bias: Tensor | None = None,
    far_cores: bool = False,
) -> Tensor:
    """A recorded pass of attention alone."""
    forward = _C.Forward(lengths, [], threads, isa, POOL, far_cores)
    value = forward.from_rows(qkv.data_ptr(), qkv.stride(0), qkv.shape[1], None)
    by_key = None if bias is None else bias.transpose(1, 2).contiguous()
    at, span = (0, 0) if by_key is None else (by_key.data_ptr(), by_key.shape[1])
    y = forward.attention(value, heads, scale, at, span, handle(quantizers))
    out = torch.full((len(qkv), y.features), 1e9)
    forward.to_rows(y, out.data_ptr(), out.stride(0))
    forward.run()
    return out


def expect_equal_but_for_ties(got: Tensor, expected: Tensor, quantizers: dict) -> None:
    level = quantizers["probabilities"].scale * 255 * quantizers["value"].scale
    if "context" in quantizers:
        level += quantizers["context"].scale
    error = (got - expected).abs()
    assert float(error.max()) <= 2.01 * level, float(error.max())
    assert float((error > 0).float().mean()) <= 0.02


CASES = [
    ([1], 1, 16),  # one token: its only key has the whole weight
    ([1, 1, 2, 1], 3, 5),  # several sequences in a vector; head size off a word
    ([15, 16, 17, 31], 1, 64),  # around a vector
    ([3, 63, 64, 65], 2, 32),  # around a panel, none aligned
    ([127, 129], 1, 72),  # several panels; features off a row block
    ([5, 512], 1, 32),  # one block of keys, from within a vector
    ([9, 600, 40], 1, 16),  # keys beyond a block: two passes
    ([1100], 1, 64),  # three blocks
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("lengths", "heads", "head_size"), CASES)
def test_the_reference_s(
    isa: str, name: str, lengths: list[int], heads: int, head_size: int
) -> None:
    torch.manual_seed(sum(lengths))
    quantizers = SETS[name]
    wide = 1.3 * torch.randn(sum(lengths), 3 * heads * head_size + 4)
    qkv = wide[:, :-4]  # rows that are not contiguous
    qkv[0] = 0.0
    qkv[-1, ::3] = -0.0
    scale = head_size**-0.5
    got = run(qkv, lengths, heads, scale, quantizers, isa)
    expected = reference.attention(qkv, lengths, heads, scale, quantizers=quantizers)
    expect_equal_but_for_ties(got, expected, quantizers)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lengths", [[120], [3, 60, 36, 1]])
def test_half_full_panels_give_the_same(isa: str, lengths: list[int]) -> None:
    """A panel of 32 slots a thread; sequences that begin and end within one."""
    torch.manual_seed(1)
    for quantizers in SETS.values():
        qkv = 1.3 * torch.randn(sum(lengths), 3 * 2 * 24)
        whole = run(qkv, lengths, 2, 0.2, quantizers, isa, threads=1)
        half = run(qkv, lengths, 2, 0.2, quantizers, isa, threads=4, far_cores=True)
        assert torch.equal(half, whole)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("lengths", "heads", "head_size"), [([33, 70], 2, 24), ([700], 1, 8)])
def test_one_result_on_every_instruction_set(
    name: str, lengths: list[int], heads: int, head_size: int
) -> None:
    torch.manual_seed(1)
    qkv = torch.randn(sum(lengths), 3 * heads * head_size)
    results = [run(qkv, lengths, heads, 0.2, SETS[name], isa, threads=3) for isa in ISAS]
    for other in results[1:]:
        expect_equal_but_for_ties(other, results[0], SETS[name])


@pytest.mark.parametrize("isa", ISAS)
def test_integers_are_exact_at_the_ends_of_their_range(isa: str) -> None:
    """Equal keys give equal weights, which have a level: the context is known to the bit."""
    tokens, size = 64, 48
    qkv = torch.full((tokens, 3 * size), 1e6)  # beyond the largest level
    qkv[:, 2 * size :] = -1e6
    quantizers = UNSIGNED | {"probabilities": Quantizer(1 / 256, 0, 0, 255)}
    got = run(qkv, [tokens], 1, 0.1, quantizers, isa)
    expected = torch.tensor(float(tokens * 4 * (0 - 121))) * (1 / 256) * 0.033
    assert torch.equal(got, expected.expand(tokens, size))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lengths", [[5, 21, 50], [9, 560]])  # shared vectors; two blocks
def test_bias_is_added_by_position(isa: str, lengths: list[int]) -> None:
    torch.manual_seed(0)
    heads, size, span = 2, 16, max(lengths)
    qkv = torch.randn(sum(lengths), 3 * heads * size)
    bias = 3 * torch.randn(heads, span, span)
    positions = torch.cat([torch.arange(length) for length in lengths])
    got = run(qkv, lengths, heads, 0.2, MIXED, isa, bias=bias)
    expected = reference.attention(qkv, lengths, heads, 0.2, bias, positions, MIXED)
    expect_equal_but_for_ties(got, expected, MIXED)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_is_the_level_of_zero_and_stays_in_its_sequence(isa: str) -> None:
    torch.manual_seed(2)
    lengths = [10, 12, 30]  # the second shares vectors with both others
    qkv = torch.randn(52, 96)
    clean = run(qkv, lengths, 1, 0.2, UNSIGNED, isa)
    qkv[15, 7], qkv[16, 40], qkv[17, 90] = float("nan"), float("inf"), float("nan")
    got = run(qkv, lengths, 1, 0.2, UNSIGNED, isa)
    expected = reference.attention(qkv, lengths, 1, 0.2, quantizers=UNSIGNED)
    expect_equal_but_for_ties(got, expected, UNSIGNED)
    assert torch.equal(got[:10], clean[:10])
    assert torch.equal(got[22:], clean[22:])


@pytest.mark.parametrize("isa", ISAS)
def test_large_scores_do_not_overflow(isa: str) -> None:
    torch.manual_seed(3)
    qkv = torch.randn(90, 96)
    steps = UNSIGNED | {"query": Quantizer(4.0, 128, 0, 255), "key": Quantizer(4.0, 128, 0, 255)}
    qkv[:, :64] *= 300
    got = run(qkv, [90], 1, 1.0, steps, isa)
    expected = reference.attention(qkv, [90], 1, 1.0, quantizers=steps)
    expect_equal_but_for_ties(got, expected, steps)


def test_a_recorded_pass_runs_again_with_its_quantizers() -> None:
    torch.manual_seed(4)
    heads, size = 2, 16
    table = torch.randn(50, 3 * heads * size)

    def expected(ids: Tensor, lengths: list[int]) -> Tensor:
        return reference.attention(table[ids], lengths, heads, 0.25, quantizers=MIXED)

    first, again = torch.randint(0, 50, (20,)), torch.randint(0, 50, (90,))
    forward = _C.Forward([20], [], 1, "auto", POOL)
    width = table.shape[1]
    value = forward.embed([table.data_ptr()], [50], [first.data_ptr()], width, None)
    y = forward.attention(value, heads, 0.25, 0, 0, handle(MIXED))
    recording = forward.recording(y)
    out = torch.empty(90, heads * size)
    recording.run([30, 60], [again.data_ptr()], out.data_ptr(), out.stride(0), 2, "auto", POOL)
    expect_equal_but_for_ties(out, expected(again, [30, 60]), MIXED)


def test_bad_arguments_are_named() -> None:
    most = _C.ATTENTION_MAX_INT8_TERMS
    forward = _C.Forward([most + 1], [], 1, "auto", POOL)
    qkv = torch.zeros(most + 1, 3)
    value = forward.from_rows(qkv.data_ptr(), 3, 3, None)
    with pytest.raises(ValueError, match=f"quantizers: expected at most {most} tokens"):
        forward.attention(value, 1, 1.0, 0, 0, handle(UNSIGNED))
    with pytest.raises(ValueError, match="key: expected a positive finite scale; got 0"):
        handle(UNSIGNED | {"key": Quantizer(0.0, 0, 0, 255)})
    with pytest.raises(ValueError, match=r"scores: expected a value in 0..127; got 255"):
        handle(UNSIGNED | {"scores": Quantizer(1.0, 0, -128, 255)})
    with pytest.raises(ValueError, match=r"value: expected a value in 0..255; got -1"):
        handle(UNSIGNED | {"value": Quantizer(1.0, -1, 0, 255)})
