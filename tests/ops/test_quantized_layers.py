"""Zero points, groups, requantized outputs and quantized attention through the operations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_runtime.formats import PackedWeight, pack
from sparse_runtime.kernels.attention.reference import attention
from sparse_runtime.kernels.linear.reference import Quantizer
from sparse_runtime.ops import LinearWeight, TokenBatch, can_fuse, choose, get_backend
from sparse_runtime.ops.reference import quantize_input
from sparse_runtime.ops.types import LinearRequest
from sparse_runtime.spec import (
    ActivationSpec,
    LinearSpec,
    QuantizedAttention,
    Structure,
    ValueSpec,
)
from sparse_runtime.testing import make_activations, make_packed

# 13 inputs: a short last group of five, and less than one vector.
ROWS, COLS = 6, 13
STATIC = ActivationSpec("static", "uint8", 0.02, 131)
OUTPUTS = ActivationSpec("static", "int8", 0.05, -9)
SHIFTED = ActivationSpec("static", "uint8", 0.25, 99)
FULL_RANGE = ActivationSpec("dynamic", "int8", narrow_range=False)


def packed(
    *,
    dtype: str = "int8",
    scales: str = "row",
    zero_points: bool = False,
    activations: ActivationSpec | None = None,
    outputs: ActivationSpec | None = None,
    seed: int = 0,
) -> PackedWeight:
    values = ValueSpec.parse(dtype, scales, zero_points=zero_points)
    spec = LinearSpec((ROWS, COLS), Structure("dense"), values, activations, outputs)
    generator = torch.Generator().manual_seed(seed)
    low, high = (-8, 8) if dtype == "int4" else (-128, 128)
    weight = torch.randint(low, high, (ROWS, COLS), generator=generator).to(torch.int8)
    zeros = torch.randint(low, high, (spec.scale_count,), generator=generator).to(torch.int8)
    scale = torch.rand(spec.scale_count, generator=generator) / 50 + 1e-3
    return pack(weight, spec, scale, zeros if zero_points else None)


def weights(*parts: PackedWeight) -> list[LinearWeight]:
    return [LinearWeight(f"part {i}", part, torch.ones(ROWS) * i) for i, part in enumerate(parts)]


@pytest.mark.parametrize("scales", ["tensor", "row", "chunk:4", "group:5", "group:1", "group:99"])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_weight_only_layers_run_dequantized(dtype: str, zero_points: bool, scales: str) -> None:
    part = packed(dtype=dtype, scales=scales, zero_points=zero_points)
    x, one = make_activations(7, COLS), weights(part)
    decision = choose(one)
    assert decision.candidate.name == "cpu.panels"
    exact = F.linear(x.double(), part.dequantize(torch.float64))
    for backend in ("auto", "reference"):
        y = choose(one, backend=backend).prepare()(x)
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scales", ["row", "chunk:4", "group:5"])
@pytest.mark.parametrize("activations", [STATIC, FULL_RANGE, ActivationSpec("dynamic", "uint8")])
def test_integer_layers_multiply_what_their_integers_stand_for(
    activations: ActivationSpec, scales: str
) -> None:
    part = packed(scales=scales, zero_points=True, activations=activations)
    x = make_activations(7, COLS)
    layer = choose(weights(part), backend="reference").prepare()
    q, zero_point, scale = quantize_input(x, activations)
    zeros = torch.as_tensor(zero_point).view(-1, 1)
    stand_for = (q.double() - zeros) * scale.double().unsqueeze(1)
    exact = F.linear(stand_for, part.dequantize(torch.float64))
    torch.testing.assert_close(layer(x).double(), exact, rtol=1e-5, atol=1e-5)
    # And row for row the same as one by one: nothing leaks between tokens.
    assert torch.equal(layer(x), torch.cat([layer(row[None]) for row in x]))


def test_what_the_kernels_do_not_compute_is_left_to_the_reference() -> None:
    part, reason = packed(scales="group:5", activations=STATIC), "the scales are group:5"
    layer = choose(weights(packed(activations=STATIC), part))
    assert layer.candidate.name == "reference"
    reasons = {item.candidate.name: item.reason or "" for item in layer.considered}
    assert reason in reasons["cpu.panels"]
    assert "multiplies floats" in reasons["cpu.float"]
    with pytest.raises(RuntimeError, match=f"part 0: .*{reason}"):
        choose(weights(part), backend="cpu")


def test_parts_requantize_their_outputs_each_with_its_own_scale() -> None:
    # As query, key and value of QAT checkpoints: the third is not requantized.
    parts = [
        packed(activations=STATIC, outputs=outputs, seed=i, zero_points=i == 1)
        for i, outputs in enumerate((OUTPUTS, SHIFTED, None))
    ]
    assert can_fuse(weights(*parts))
    x, residual = make_activations(7, COLS), make_activations(7, 3 * ROWS, seed=2)
    backend = get_backend("reference", "cpu", torch.float32)
    fused = backend.prepare_linear(weights(*parts))
    assert len(backend.decisions) == 1
    ones = [choose([one], backend="reference").prepare()(x) for one in weights(*parts)]
    assert torch.equal(fused(x), torch.cat(ones, dim=1))
    expected = []
    for i, part in enumerate(parts):
        bare = pack(part.unpack(), replace(part.spec, outputs=None), part.scales, part.zero_points)
        y = choose([LinearWeight("bare", bare, torch.ones(ROWS) * i)], backend="reference")
        expected.append(requantized(y.prepare()(x), part.spec.outputs))
    assert torch.equal(fused(x), torch.cat(expected, dim=1))
    # Requantized before the activation function, which comes before the residual.
    y = fused(x, "gelu", residual)
    assert torch.equal(y, F.gelu(torch.cat(expected, dim=1)) + residual)


def requantized(y: Tensor, spec: ActivationSpec | None) -> Tensor:
    if spec is None:
        return y
    q = (torch.round(y / spec.scale) + spec.zero_point).clamp(*spec.range)
    return (q - spec.zero_point) * torch.tensor(spec.scale)


def test_output_quantizers_are_stacked_row_by_row() -> None:
    parts = [packed(activations=STATIC, outputs=outputs) for outputs in (OUTPUTS, None, SHIFTED)]
    request = LinearRequest(tuple(weights(*parts)), torch.device("cpu"), torch.float32)
    stacked = request.stacked_outputs()
    assert stacked is not None
    scale, zero_point, low, high = stacked
    assert [t.dtype for t in stacked] == [torch.float32, *[torch.int32] * 3]
    assert torch.equal(scale, torch.tensor([0.05, 0.0, 0.25]).repeat_interleave(ROWS))
    assert zero_point.tolist() == [-9] * ROWS + [0] * ROWS + [99] * ROWS
    assert low.tolist() == [-128] * ROWS + [0] * 2 * ROWS
    assert high.tolist() == [127] * ROWS + [0] * ROWS + [255] * ROWS
    bare = LinearRequest(tuple(weights(parts[1])), torch.device("cpu"), torch.float32)
    assert bare.stacked_outputs() is None


def test_the_narrow_and_the_full_range_are_not_fused() -> None:
    narrow = packed(activations=ActivationSpec("dynamic", "int8"))
    full = packed(activations=FULL_RANGE)
    assert not can_fuse(weights(narrow, full))
    backend = get_backend("auto", "cpu", torch.float32)
    layer = backend.prepare_linear(weights(narrow, full))
    x = make_activations(5, COLS)
    ones = [backend.prepare_linear([weight])(x) for weight in weights(narrow, full)]
    assert torch.equal(layer(x), torch.cat(ones, dim=1))
    assert not torch.allclose(ones[0], ones[1] - 1, atol=1e-4)  # the second has a bias of 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_every_backend_runs_quantized_attention_as_the_reference(
    name: str, with_bias: bool, dtype: torch.dtype
) -> None:
    lengths, heads = [4, 1, 9], 2
    positions = torch.cat([torch.arange(n) for n in lengths])
    rows = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    batch = TokenBatch(lengths, positions, rows * 9 + positions, 3, 9)
    qkv = make_activations(14, 3 * heads * 8).to(dtype)
    bias = make_activations(heads * 9, 9, seed=3).view(heads, 9, 9) if with_bias else None
    static = ActivationSpec("static", "int8", 0.03)
    quantized = QuantizedAttention(query=static, key=STATIC, value=static, context=OUTPUTS)
    backend = get_backend(name, "cpu", dtype)
    value = backend.attention(
        backend.from_tokens(batch, qkv),
        batch,
        heads=heads,
        scale=0.35,
        bias=bias,
        quantized=quantized,
    )
    steps = {
        part: Quantizer(spec.scale, spec.zero_point, *spec.range)
        for part, spec in quantized.parts().items()
    }
    expected = attention(qkv, lengths, heads, 0.35, bias, positions, steps)
    assert torch.equal(backend.to_tokens(value), expected)


def test_layers_of_plain_integers_are_chosen_as_before() -> None:
    for activations in ("dynamic", "symmetric", STATIC):
        part = make_packed((ROWS, COLS), values="int8", activations=activations)
        assert choose([LinearWeight("layer", part)]).candidate.name == "cpu.panels"
