"""Linear layers of the CUDA backend, interpreted without a GPU, against the reference."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.formats import PackedWeight, pack
from sparse_runtime.kernels.linear.operands import Quantized, Target
from sparse_runtime.kernels.linear.reference import quantize_rows_asymmetric
from sparse_runtime.ops import LinearRequest, LinearWeight, choose
from sparse_runtime.ops.cuda.choosing import ANY_TOKENS, Choice, Estimate, Regime, why_not
from sparse_runtime.ops.cuda.families import FAMILIES
from sparse_runtime.ops.cuda.family import Family
from sparse_runtime.ops.cuda.linear import CudaLinear
from sparse_runtime.ops.cuda.machine import machine_of
from sparse_runtime.ops.cuda.stacked import stack_layers
from sparse_runtime.ops.cuda.workspaces import workspace_for
from sparse_runtime.ops.reference import ReferenceLinear
from sparse_runtime.spec import ActivationSpec, LinearSpec, Structure, ValueSpec
from sparse_runtime.testing import (
    assert_close_to_oracle,
    linear_oracle,
    make_activations,
    make_packed,
    make_weight,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# 40 outputs and 72 inputs divide no tile, and are multiples of 8, as libraries want; 21 and 43
# divide nothing at all.
WHOLE, RAGGED = (40, 72), (21, 43)
STRUCTURES: dict[str, float | None] = {
    "dense": None,
    "unstructured": 0.8,
    "2:4": None,
    "block:16x16": 0.5,
    "block:4x1": 0.5,
}
FULL_RANGE = ActivationSpec("dynamic", "int8", narrow_range=False)
SCHEMES: dict[str, str | ActivationSpec] = {
    "dynamic": "dynamic",
    "symmetric": "symmetric",
    "full range": FULL_RANGE,
    "static int8": ActivationSpec("static", "int8", 0.03, -5),
    "static uint8": ActivationSpec("static", "uint8", 0.02, 131),
    "no zero point": ActivationSpec("static", "int8", 0.03, 0),
}
EXACT = (None, "relu")
"""Activation functions that round as PyTorch's do."""


def request_of(
    *packed: PackedWeight, bias: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> LinearRequest:
    weights = tuple(
        LinearWeight(f"layer{i}", part.to(DEVICE), None if bias is None else bias.to(DEVICE))
        for i, part in enumerate(packed)
    )
    return LinearRequest(weights, DEVICE, dtype)


def forced(request: LinearRequest, family: Family, tokens: int = 16) -> CudaLinear:
    """The layers on one family, in its default configuration for so many tokens."""
    estimate = Estimate(family, None, 1.0)
    regime = Regime(1, tokens, {family.name: estimate}, None)
    return CudaLinear(request, (Choice(ANY_TOKENS, estimate, regime),))


def families_for(request: LinearRequest) -> list[Family]:
    """Those that take these layers here."""
    layers = stack_layers(request)
    able = [
        f for f in FAMILIES if not why_not(f, layers.problem, layers.epilogue, machine_of(DEVICE))
    ]
    return [family for family in able if family.name != "cusparselt"]


def assert_like_the_reference(y: Tensor, expected: Tensor, activation: str | None) -> None:
    if activation in EXACT:
        assert torch.equal(y, expected)
    else:
        # erf and exp of the interpreter, the GPU and PyTorch differ in their last bits.
        torch.testing.assert_close(y, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("structure", "values", "scheme"),
    [
        *product(STRUCTURES, ["int8"], ["dynamic", "static uint8"]),
        *product(["dense"], ["int8"], ["symmetric", "full range", "static int8", "no zero point"]),
        *product(STRUCTURES, ["int4"], ["symmetric"]),
    ],
)
def test_quantized_layers_equal_the_reference(structure: str, values: str, scheme: str) -> None:
    sparsity = STRUCTURES[structure]
    packed = make_packed(
        WHOLE, structure, sparsity, values=values, activations=SCHEMES[scheme], seed=1
    )
    bias = make_activations(1, WHOLE[0], seed=1)[0]
    request = request_of(packed, bias=bias)
    reference = ReferenceLinear(request)
    x = make_activations(19, WHOLE[1]).to(DEVICE)  # more than one tile of 16 tokens
    residual = make_activations(19, WHOLE[0], seed=3).to(DEVICE)
    for family in families_for(request):
        layer = forced(request, family)
        for activation, added in (("relu", residual), ("gelu", None)):
            y = layer(x, activation, added)
            assert_like_the_reference(y, reference(x, activation, added), activation)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("values", ["fp32", "bf16", "fp16", "int8", "int4"])
def test_float_layers_are_as_close_to_the_oracle_as_pytorch(structure: str, values: str) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(values, torch.float32)
    packed = make_packed(
        RAGGED, structure, STRUCTURES[structure], values=values, activations="none", seed=2
    )
    bias = make_activations(1, RAGGED[0], seed=1)[0]
    request = request_of(packed, bias=bias, dtype=dtype)
    x = make_activations(7, RAGGED[1], dtype=dtype)
    residual = make_activations(7, RAGGED[0], dtype=dtype, seed=3)
    for family in families_for(request):
        layer = forced(request, family)
        for activation, added in ((None, None), ("gelu", residual), ("gelu_new", None)):
            y = layer(x.to(DEVICE), activation, None if added is None else added.to(DEVICE))
            assert y.dtype == dtype
            oracle, baseline = linear_oracle(x, packed, bias, activation, added)
            assert_close_to_oracle(y.cpu(), oracle, baseline, name=f"{family.name} {activation}")


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("shape", [RAGGED, (1, 1), (16, 16), (130, 20)])
@pytest.mark.parametrize("tokens", [0, 1, 17, 33])  # none, one row, past a tile, past two
def test_integers_are_exact_at_shapes_off_every_tile(
    structure: str, shape: tuple[int, int], tokens: int
) -> None:
    # With scales of one, float32 holds every sum; up to 400 saturates the quantization.
    generator = torch.Generator().manual_seed(5)
    mask = make_weight(shape, structure, STRUCTURES[structure]) != 0
    weight = (torch.randint(-128, 128, shape, generator=generator) * mask).to(torch.int8)
    spec = LinearSpec(
        shape,
        Structure.parse(structure),
        ValueSpec("int8"),
        ActivationSpec("static", "uint8", 1.0, 7),
    )
    request = request_of(pack(weight, spec, torch.ones(shape[0])))
    x = torch.randint(-400, 401, (tokens, shape[1]), generator=generator)
    expected = ((x + 7).clamp(0, 255) - 7) @ weight.long().T
    for family in families_for(request):
        if tokens >= family.least_tokens(stack_layers(request).problem):
            y = forced(request, family)(x.float().to(DEVICE))
            assert torch.equal(y.long().cpu(), expected), family.name


def test_weight_zero_points_and_output_quantizers() -> None:
    static = ActivationSpec("static", "uint8", 0.02, 131)
    outputs = ActivationSpec("static", "uint8", 0.05, 120)
    generator = torch.Generator().manual_seed(1)
    weights = []
    # The second layer has no zero points and its outputs are not quantized.
    for values, quantizer in (
        (ValueSpec("int8", zero_points=True), outputs),
        (ValueSpec("int8"), None),
    ):
        spec = LinearSpec((24, 72), Structure("dense"), values, static, quantizer)
        weight = torch.randint(-128, 128, (24, 72), generator=generator, dtype=torch.int8)
        packed = pack(
            weight,
            LinearSpec((24, 72), Structure("dense"), ValueSpec("int8")),
            torch.full((24,), 0.01),
        )
        zeros = torch.arange(24, dtype=torch.int8) - 9 if values.zero_points else None
        weights.append(
            type(packed)(spec=spec, values=packed.values, scales=packed.scales, zero_points=zeros)
        )
    request = request_of(*weights, bias=make_activations(1, 24)[0])
    reference, x = ReferenceLinear(request), make_activations(18, 72).to(DEVICE)
    for family in families_for(request):
        layer = forced(request, family)
        for activation in (None, "relu", "gelu"):
            assert_like_the_reference(layer(x, activation), reference(x, activation), activation)


def test_layers_of_several_structures_and_granularities_run_as_one() -> None:
    parts = [
        make_packed((24, 72), "dense", values="int8", scales="tensor", seed=1),
        make_packed((16, 72), "2:4", values="int4", scales="row", seed=2),
        make_packed((40, 72), "unstructured", 0.9, values="int8", scales="chunk:7", seed=3),
    ]
    bias = [None, make_activations(1, 16)[0].to(DEVICE), None]
    weights = tuple(
        LinearWeight(f"layer{i}", part.to(DEVICE), b)
        for i, (part, b) in enumerate(zip(parts, bias, strict=True))
    )
    request = LinearRequest(weights, DEVICE, torch.float32)
    x = make_activations(19, 72).to(DEVICE)  # cuBLASLt takes integers from 17 rows on
    assert stack_layers(request).structure.kind == "unstructured"
    for family in families_for(request):
        assert torch.equal(forced(request, family)(x), ReferenceLinear(request)(x)), family.name


@pytest.mark.parametrize("scheme", ["dynamic", "symmetric", "static int8"])
def test_hazards_are_quantized_as_the_reference_does(scheme: str) -> None:
    x = torch.zeros(8, RAGGED[1])  # a row of zeros
    x[1] = -0.0
    x[2] = torch.arange(RAGGED[1]) / 2 - 10  # ties
    x[3] = 1e-41
    x[4] = 3e38
    x[5] = -1.0
    x[6, 3], x[7, 5] = torch.nan, -torch.inf
    packed = make_packed(RAGGED, values="int8", activations=SCHEMES[scheme])
    request = request_of(packed)
    y, expected = CudaLinear(request)(x.to(DEVICE)), ReferenceLinear(request)(x.to(DEVICE))
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def test_inputs_of_any_strides_give_what_a_contiguous_copy_gives() -> None:
    layer = CudaLinear(request_of(make_packed(RAGGED, values="int8")))
    wide = make_activations(12, 2 * RAGGED[1]).to(DEVICE)
    inputs = RAGGED[1]
    views = (
        wide[:, 4 : 4 + inputs],
        wide[::2, :inputs],
        wide[:, ::2],
        make_activations(inputs, 6).to(DEVICE).T,
        wide[:1, :inputs].expand(5, inputs),
        wide.flatten().as_strided((8, inputs), (3, 1)),
    )
    for x in views:
        assert torch.equal(layer(x), layer(x.contiguous()))
    residual = make_activations(RAGGED[0], 12).to(DEVICE).T
    x = wide[:, :inputs]
    assert torch.equal(layer(x, None, residual), layer(x, None, residual.contiguous()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("activations", ["dynamic", "none"])
def test_other_float_types_come_back_as_they_went_in(dtype: torch.dtype, activations: str) -> None:
    packed = make_packed(RAGGED, values="int8", activations=activations)
    layer = CudaLinear(request_of(packed))
    x = make_activations(5, RAGGED[1], dtype=dtype).to(DEVICE)
    y, wide = layer(x), layer(x.float())
    assert y.dtype == dtype
    assert torch.equal(y, wide.to(dtype))


def test_a_launch_quantizes_its_result_for_the_next_layer() -> None:
    request = request_of(make_packed(WHOLE, values="int8"))
    x = make_activations(19, WHOLE[1]).to(DEVICE)
    y = ReferenceLinear(request)(x)
    q, scale, zero = quantize_rows_asymmetric(y)
    for family in families_for(request):
        layer = forced(request, family)
        target = Target(
            floats=torch.empty_like(y),
            floats_stride=WHOLE[0],
            q=torch.empty(19, 48, dtype=torch.int8, device=DEVICE),
            q_stride=48,
            scale=torch.empty(19, device=DEVICE),
            zero=torch.empty(19, dtype=torch.int32, device=DEVICE),
            ranges=torch.zeros(2, 19, dtype=torch.int32, device=DEVICE),
            counters=torch.zeros(layer.target_counters(19), dtype=torch.int32, device=DEVICE),
        )
        given = quantized(layer, x)
        workspace = workspace_for(DEVICE, *layer.workspace_needs(19))
        layer.launch(
            given, None, None, target._replace(q=target.q[:, :40]), "asymmetric", workspace
        )
        assert torch.equal(target.floats, y), family.name
        assert torch.equal(target.q[:, :40].int() + 128, q), family.name
        assert torch.equal(target.scale, scale) and torch.equal(target.zero + 128, zero)
        assert not target.ranges.any() and not target.counters.any()
        dynamic = stack_layers(request).problem._replace(dynamic=True)
        assert layer.launches(19, "asymmetric") == family.launches(dynamic)


def quantized(layer: CudaLinear, x: Tensor) -> Quantized:
    q, scale, zero = quantize_rows_asymmetric(x)
    stored = (q - 128).to(torch.int8)
    return Quantized(stored, stored.stride(0), scale, zero - 128, 1)


def test_nothing_random_or_shared_is_left_behind() -> None:
    # The same result again, and from a second layer that shares the counters.
    request = request_of(make_packed((40, 512), values="int8"))
    first, second = CudaLinear(request), CudaLinear(request)
    x = make_activations(3, 512).to(DEVICE)
    assert torch.equal(first(x), second(x))
    assert torch.equal(first(x), first(x))


def test_bytes_are_those_of_the_layouts() -> None:
    packed = make_packed((40, 72), values="int8", activations="symmetric")
    layer = CudaLinear(request_of(packed, bias=torch.zeros(40)))
    rows = 80  # 72 bytes, padded to whole 16-byte words
    assert layer.nbytes == 40 * rows + 4 * 40 + 4 * 40


def test_the_candidate_takes_and_refuses() -> None:
    def decide(packed: PackedWeight, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
        weight = LinearWeight("layer", packed.to(DEVICE))
        try:
            decision = choose([weight], backend="cuda", device=DEVICE, dtype=dtype)
        except RuntimeError as error:
            return SimpleNamespace(text=str(error), prepared=None)
        return SimpleNamespace(text=decision.explain(), prepared=decision.prepare())

    taken = decide(make_packed(WHOLE, "2:4", values="int8"))
    assert isinstance(taken.prepared, CudaLinear)
    assert "-> cuda: triton.dense" in taken.text or "-> cuda: cublas" in taken.text
    assert "predicted" in taken.text and "us at" in taken.text
    if DEVICE.type == "cpu":
        automatic = choose([LinearWeight("layer", make_packed(WHOLE, values="int8"))])
        assert "cuda: Triton interprets its kernels on the CPU, for tests" in automatic.explain()
    groups = decide(make_packed(WHOLE, values="int8", scales="group:8"))
    assert "cuda: sums whole rows of integers, the scales are group:8" in groups.text
    floats = decide(make_packed(WHOLE, values="fp32"), torch.float64)
    assert "the activations are float64" in floats.text
    expanded = decide(make_packed(WHOLE, values="int4", activations="none"), torch.bfloat16)
    assert "int4 weights multiplied as bf16" in expanded.text


def test_group_scales_without_quantized_inputs_run() -> None:
    packed = make_packed(WHOLE, values="int4", scales="group:8", activations="none")
    request = request_of(packed)
    x = make_activations(4, WHOLE[1]).to(DEVICE)
    oracle, baseline = linear_oracle(x.cpu(), packed)
    assert_close_to_oracle(CudaLinear(request)(x).cpu(), oracle, baseline)


def test_operands_that_do_not_fit_are_refused_before_anything_runs() -> None:
    layer = CudaLinear(request_of(make_packed(RAGGED, values="int8")))
    x = torch.ones(2, RAGGED[1], device=DEVICE)
    for operands, message in (
        ((torch.ones(2, 44), None, None), r"floats \[tokens, 43\], got .* \[2, 44\]"),
        ((x, "swish", None), "activation 'swish': expected None or one of gelu"),
        ((x, None, torch.ones(3, 21, device=DEVICE)), r"expected residual \[2, 21\]"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(*operands)
    if DEVICE.type == "cuda":
        with pytest.raises(ValueError, match=r"on cuda:0, where the layer is, got cpu"):
            layer(x.cpu())
