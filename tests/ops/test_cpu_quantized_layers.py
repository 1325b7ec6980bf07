"""The CPU kernels on zero points, requantized outputs, full-range int8 and quantized attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparse_runtime import _C
from sparse_runtime.formats import PackedWeight, pack
from sparse_runtime.kernels.attention.reference import attention
from sparse_runtime.ops import LinearWeight, TokenBatch, choose, get_backend
from sparse_runtime.ops.cpu_backend import panel_quantizers
from sparse_runtime.ops.reference import quantizers_of
from sparse_runtime.spec import (
    ActivationSpec,
    LinearSpec,
    QuantizedAttention,
    Structure,
    ValueSpec,
)
from sparse_runtime.testing import make_activations

STATIC = ActivationSpec("static", "uint8", 0.02, 131)
SIGNED = ActivationSpec("static", "int8", 0.03, 4)
OUTPUTS = ActivationSpec("static", "int8", 0.05, -9)
SHIFTED = ActivationSpec("static", "uint8", 0.25, 99)
FULL_RANGE = ActivationSpec("dynamic", "int8", narrow_range=False)
DYNAMIC = ActivationSpec("dynamic", "uint8")
ROWS, COLS = 70, 130  # off every vector, group and row block
ATTENTION = QuantizedAttention(
    query=STATIC,
    key=SIGNED,
    probabilities=ActivationSpec("static", "uint8", 1 / 255),
    value=STATIC,
    context=OUTPUTS,
)


def packed(
    activations: ActivationSpec,
    outputs: ActivationSpec | None = None,
    *,
    zero_points: bool = False,
    dtype: str = "int8",
    scales: str = "row",
    seed: int = 0,
) -> PackedWeight:
    values = ValueSpec.parse(dtype, scales, zero_points=zero_points)
    spec = LinearSpec((ROWS, COLS), Structure("dense"), values, activations, outputs)
    generator = torch.Generator().manual_seed(seed)
    low, high = (-8, 8) if dtype == "int4" else (-128, 128)
    weight = torch.randint(low, high, (ROWS, COLS), generator=generator).to(torch.int8)
    zeros = torch.randint(low, high, (spec.scale_count,), generator=generator).to(torch.int8)
    scale = torch.rand(spec.scale_count, generator=generator) / 500 + 1e-4
    return pack(weight, spec, scale, zeros if zero_points else None)


def both(
    *parts: PackedWeight, x: Tensor, activation: str | None = None, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """By the CPU's kernels and by the reference."""
    layers = [LinearWeight(f"part {i}", p, torch.ones(ROWS) * i) for i, p in enumerate(parts)]
    chosen = choose(layers)
    assert chosen.candidate.name == "cpu.panels"
    reference = choose(layers, backend="reference").prepare()
    return chosen.prepare()(x, activation, residual), reference(x, activation, residual)


@pytest.mark.parametrize("tokens", [1, 17, 70])
@pytest.mark.parametrize("activations", [STATIC, SIGNED, FULL_RANGE, DYNAMIC])
@pytest.mark.parametrize("scales", ["row", "tensor", "chunk:4"])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_zero_points(tokens: int, activations: ActivationSpec, scales: str, dtype: str) -> None:
    part = packed(activations, zero_points=True, scales=scales, dtype=dtype)
    x = make_activations(tokens, COLS)
    x[0] = 0.0
    y, expected = both(part, x=x)
    torch.testing.assert_close(y, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("outputs", [OUTPUTS, SHIFTED])
def test_requantized_outputs_are_the_reference_s_to_the_bit(
    outputs: ActivationSpec, zero_points: bool
) -> None:
    x, residual = make_activations(40, COLS), make_activations(40, ROWS, seed=1)
    x[3, 5], x[4, 6] = float("nan"), -0.0
    part = packed(STATIC, outputs, zero_points=zero_points)
    assert torch.equal(*both(part, x=x))
    assert torch.equal(*both(part, x=x, residual=residual))
    y, expected = both(part, x=x, activation="gelu", residual=residual)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


def test_parts_requantize_each_with_their_own_scale() -> None:
    # As query, key and value of QAT checkpoints: the third is not requantized.
    kinds = enumerate((OUTPUTS, SHIFTED, None))
    parts = [packed(STATIC, out, zero_points=i == 1, seed=i) for i, out in kinds]
    x = make_activations(20, 2 * COLS)[:, :COLS]  # not contiguous
    y, expected = both(*parts, x=x)
    assert torch.equal(y[:, : 2 * ROWS], expected[:, : 2 * ROWS])
    torch.testing.assert_close(y, expected, rtol=2e-6, atol=2e-6)


def test_full_range_inputs() -> None:
    x = make_activations(33, COLS)
    x[0], x[1, 2], x[2] = 0.0, float("nan"), 1e-42
    y, expected = both(packed(FULL_RANGE), x=x)
    torch.testing.assert_close(y, expected, rtol=2e-6, atol=2e-6, equal_nan=True)


def test_more_inputs_than_sums_can_hold_are_left_to_the_reference() -> None:
    cols = _C.PANEL_MAX_K_ZERO_POINTS + 1
    spec = LinearSpec((1, cols), Structure("dense"), ValueSpec("int8", zero_points=True), STATIC)
    part = pack(
        torch.ones(1, cols, dtype=torch.int8),
        spec,
        torch.ones(1),
        torch.full((1,), 5, dtype=torch.int8),
    )
    decision = choose([LinearWeight("wide", part)])
    assert decision.candidate.name == "reference"
    assert f"takes up to {cols - 1} inputs with zero points" in decision.explain()
    bare = pack(part.unpack(), replace(spec, values=ValueSpec("int8")), torch.ones(1))
    assert choose([LinearWeight("wide", bare)]).candidate.name == "cpu.panels"


def batch_of(lengths: list[int]) -> TokenBatch:
    positions = torch.cat([torch.arange(n) for n in lengths])
    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    longest = max(lengths)
    return TokenBatch(lengths, positions, rows * longest + positions, len(lengths), longest)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("part", [None, "key", "probabilities"])  # a side that stays float
def test_attention_runs_in_the_kernel_where_it_has_all_quantizers(
    part: str | None, with_bias: bool
) -> None:
    lengths, heads = [4, 1, 29], 2
    batch = batch_of(lengths)
    quantized = ATTENTION if part is None else replace(ATTENTION, **{part: None})
    assert (panel_quantizers(quantized) is None) == (part is not None)
    qkv = make_activations(sum(lengths), 3 * heads * 8)
    bias = make_activations(heads * 29, 29, seed=3).view(heads, 29, 29) if with_bias else None
    backend = get_backend("cpu", "cpu", torch.float32)
    value = backend.from_tokens(batch, qkv)
    value = backend.attention(value, batch, heads=heads, scale=0.35, bias=bias, quantized=quantized)
    y = backend.to_tokens(value)
    steps = quantizers_of(quantized)
    positions = torch.cat([torch.arange(n) for n in lengths])
    expected = attention(qkv, lengths, heads, 0.35, bias, positions, steps)
    error = (y - expected).abs()
    # A probability beside a tie may be the next level, and then the context.
    assert float((error > 1e-6).float().mean()) < 0.01
    assert float(error.max()) < 1.01 * OUTPUTS.scale


def test_a_chain_of_quantized_layers() -> None:
    """Requantized query, key and value; attention; its output: recorded as one pass."""
    lengths, heads = [40, 25], 5
    batch = batch_of(lengths)
    x = make_activations(65, COLS)
    parts = [packed(STATIC, OUTPUTS, seed=i) for i in range(3)]
    layers = [LinearWeight(f"part {i}", p) for i, p in enumerate(parts)]
    results = []
    for name in ("cpu", "reference"):
        backend = get_backend(name, "cpu", torch.float32)
        qkv = backend.linear(backend.from_tokens(batch, x), backend.prepare_linear(layers))
        y = backend.attention(qkv, batch, heads=heads, scale=0.27, quantized=ATTENTION)
        results.append(backend.to_tokens(y))
    error = (results[0] - results[1]).abs()
    assert float((error > 1e-6).float().mean()) < 0.01
    assert float(error.max()) < 1.01 * OUTPUTS.scale
