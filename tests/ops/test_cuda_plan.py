"""Which launches a pass takes, what each value is stored as, and for how long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.ops import LinearRequest, LinearWeight, Norm, TokenBatch, get_backend
from sparse_runtime.ops.cuda.backend import launches_text
from sparse_runtime.ops.cuda.choosing import ANY_TOKENS, Choice, Estimate, Regime
from sparse_runtime.ops.cuda.families import FAMILIES
from sparse_runtime.ops.cuda.graphs import token_buckets
from sparse_runtime.ops.cuda.linear import CudaLinear
from sparse_runtime.ops.cuda.plan import Plan, make_plan
from sparse_runtime.ops.cuda.stacked import stack_layers
from sparse_runtime.ops.cuda.timings import forget
from sparse_runtime.ops.cuda.values import Apply, Attend, AttendRows, Embed, Linear, Normalize
from sparse_runtime.ops.cuda.variants import LibraryVariant
from sparse_runtime.spec import ActivationSpec, QuantizedAttention
from sparse_runtime.testing import make_packed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HIDDEN, HEADS, INNER, LAYERS = 32, 4, 48, 2
STATIC = ActivationSpec("static", "uint8", 0.05, 128)
SCHEMES: dict[str, Any] = {
    "floats": "none",
    "asymmetric": ActivationSpec("dynamic", "uint8"),
    "symmetric": ActivationSpec("dynamic", "int8"),
    "full_range": ActivationSpec("dynamic", "int8", narrow_range=False),
    "static": STATIC,
    "static, signed": ActivationSpec("static", "int8", 0.04, 3),
}
BATCH = TokenBatch([3, 2], torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 3, 4]), 2, 3)


class Encoder:
    """Records an encoder's operations, as a stack does."""

    def __init__(
        self,
        activations: Any,
        own: dict[str, Any] | None = None,
        *,
        sizes: tuple[int, int] = (HIDDEN, INNER),
        structure: str = "dense",
        floats: str = "fp32",
    ) -> None:
        self.hidden, inner = sizes
        dtype = torch.bfloat16 if floats == "bf16" else torch.float32
        self.backend = get_backend("cuda", DEVICE, dtype)
        self.norm = Norm(torch.ones(self.hidden), torch.zeros(self.hidden), 1e-12)
        self.quantized: QuantizedAttention | None = None
        self.bias: Tensor | None = None
        shapes = {"qkv": (3 * self.hidden, self.hidden), "out": (self.hidden, self.hidden)}
        shapes |= {"inner": (inner, self.hidden), "ffn": (self.hidden, inner)}
        values = "int8" if activations != "none" else floats
        sparsity = 0.9 if structure.startswith("block") else None
        self.layers = {
            name: self.backend.prepare_linear(
                [
                    LinearWeight(
                        f"{name}.{i}",
                        make_packed(
                            (shape[0] // len(parts), shape[1]),
                            structure,
                            sparsity,
                            values=values,
                            activations=part,
                        ),
                    )
                    for i, part in enumerate(parts)
                ]
            )
            for name, shape in shapes.items()
            for parts in [(own or {}).get(name, [activations])]
        }

    def record(self, layers: int = LAYERS) -> Any:
        backend, norm = self.backend, self.norm
        x = backend.embed(BATCH, (BATCH.row_positions,), (torch.ones(9, self.hidden),), norm)
        for _ in range(layers):
            qkv = backend.linear(x, self.layers["qkv"])
            context = backend.attention(
                qkv, BATCH, heads=HEADS, scale=0.3, bias=self.bias, quantized=self.quantized
            )
            x = backend.linear(context, self.layers["out"], residual=x, norm=norm)
            inner = backend.linear(x, self.layers["inner"], activation="gelu")
            x = backend.linear(inner, self.layers["ffn"], residual=x, norm=norm)
        return x

    def plan(self, layers: int = LAYERS) -> Plan:
        return make_plan(self.record(layers), 4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_seven_launches_a_layer(scheme: str) -> None:
    encoder = Encoder(SCHEMES[scheme])
    assert encoder.plan(LAYERS).launches(16) == 1 + 7 * LAYERS
    assert encoder.plan(0).launches(16) == 1
    kinds = [type(step.value.node) for step in encoder.plan(1).steps]
    assert kinds == [Embed, Linear, Attend, Linear, Normalize, Linear, Linear, Normalize]


BERT = (768, 3072)


@pytest.mark.parametrize("structure", ["dense", "2:4", "block:64x64"])
@pytest.mark.parametrize("scheme", ["asymmetric", "static", "floats"])
@pytest.mark.skipif(DEVICE == "cuda", reason="predictions for an H100, where there is no GPU")
def test_predictions_for_an_h100_keep_seven_launches_up_to_512_tokens(
    scheme: str, structure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()  # nothing is measured
    encoder = Encoder(SCHEMES[scheme], sizes=BERT, structure=structure, floats="bf16")
    plan = encoder.plan(1)
    assert {plan.launches(rows) for rows in token_buckets(512)} == {1 + 7}
    # From there on, libraries may serve, each with an epilogue launch besides.
    assert plan.launches(4096) <= 1 + 11


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_library_product_counts_with_its_epilogue(scheme: str) -> None:
    encoder = Encoder(SCHEMES[scheme])
    for name in ("qkv", "ffn"):
        encoder.layers[name] = on_family(encoder, name, "cublas")
    assert encoder.plan(LAYERS).launches(64) == 1 + 9 * LAYERS
    for name in ("out", "inner"):
        encoder.layers[name] = on_family(encoder, name, "cublas")
    plan = encoder.plan(LAYERS)
    assert {plan.launches(rows) for rows in (16, 64, 4096)} == {1 + 11 * LAYERS}


def test_launches_are_counted_by_the_tokens_that_a_family_serves() -> None:
    encoder = Encoder(STATIC)
    encoder.layers["ffn"] = on_family(encoder, "ffn", "cublas", after=128)
    plan = encoder.plan(LAYERS)
    assert (plan.launches(128), plan.launches(144)) == (1 + 7 * LAYERS, 1 + 8 * LAYERS)
    assert launches_text(plan) == f"{1 + 7 * LAYERS}, from 129 tokens {1 + 8 * LAYERS}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_cuda_library_quantizes_rows_by_their_ranges_in_a_second_launch(scheme: str) -> None:
    encoder = Encoder(SCHEMES[scheme])
    variant = LibraryVariant(print, None, None, lambda tokens: (0, 0))
    for layer in encoder.layers.values():
        layer._variants = [(ANY_TOKENS, variant)]
    dynamic = getattr(SCHEMES[scheme], "scheme", None) == "dynamic"
    assert encoder.plan(LAYERS).launches(16) == 1 + (8 if dynamic else 7) * LAYERS


def on_family(encoder: Encoder, name: str, family: str, after: int = 0) -> CudaLinear:
    """A layer that one family runs from so many tokens on, and our dense kernel up to there."""
    (decision,) = (d for d in encoder.backend.decisions if d.request.name == f"{name}.0")
    by_name = {family.name: family for family in FAMILIES}
    choices = []
    for most, chosen in ((after, "triton.dense"), (ANY_TOKENS, family)):
        estimate = Estimate(by_name[chosen], None, 1.0)
        choices.append(Choice(most, estimate, Regime(1, 16, {chosen: estimate}, None)))
    return CudaLinear(decision.request, choices)


def test_layers_know_how_their_one_reader_quantizes() -> None:
    """What stands between queries and the next layer is attention, which makes rows of its own."""
    for scheme, dynamic in (("asymmetric", True), ("static", False), ("floats", False)):
        spec = SCHEMES[scheme]
        for between in (False, True):
            first, second = requests_of_a_pair(spec, between)
            assert stack_layers(first).problem.dynamic == (dynamic and not between)
            assert not stack_layers(second).problem.dynamic
            wanted = None if between or scheme == "floats" else spec
            assert (first.results, second.results) == (wanted, None)


def requests_of_a_pair(activations: Any, between: bool) -> list[LinearRequest]:
    backend = get_backend("cuda", DEVICE, torch.float32)
    values = "int8" if activations != "none" else "fp32"
    shapes = {"inner": (INNER, HIDDEN), "ffn": (HIDDEN, INNER)}
    weights = [
        LinearWeight(name, make_packed(shape, values=values, activations=activations))
        for name, shape in shapes.items()
    ]
    backend.prepare_pair(weights[:1], weights[1], between=between)
    return [decision.request for decision in backend.decisions]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_are_stored_as_their_readers_want_them(scheme: str) -> None:
    """Floats where a norm, a residual or attention reads them, or a token's range is not known."""
    spec = None if scheme == "floats" else SCHEMES[scheme]
    plan = Encoder(SCHEMES[scheme]).plan(1)
    embed, qkv, context, out, normed, inner, ffn, last = (step.value for step in plan.steps)
    forms: dict[Any, set[Any]] = {}
    for value, form in plan.stored:
        forms.setdefault(value, set()).add(form)
    assert forms[embed] == forms[normed] == {None, spec}  # residuals, and the next linear
    assert forms[qkv] == forms[out] == forms[ffn] == forms[last] == {None}
    # Made in parts: a dynamic scale needs the floats of the whole row.
    in_parts = {spec} if spec is not None and spec.scheme == "static" else {None, spec}
    assert forms[context] == forms[inner] == in_parts
    for step in plan.steps:
        assert step.quantizes is None
        assert step.fused == (spec if step.value in (embed, context, normed, inner) else None)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_buffers_hold_what_is_read_until_it_is_read(scheme: str) -> None:
    plan = Encoder(SCHEMES[scheme]).plan()
    buffers = [buffer for storage in plan.stored.values() for buffer in storage.buffers]
    for i, one in enumerate(buffers):
        assert one.offset >= 0 and one.offset % 4 == 0
        for other in buffers[:i]:
            apart = one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
            assert apart or not one.meets(other)
    for at, step in enumerate(plan.steps):
        for read in step.value.node.reads:
            for buffer in plan.stored[read].buffers:
                assert buffer.first < at <= buffer.last
    for buffer in plan.stored[plan.result, None].buffers:
        assert buffer.last == len(plan.steps)  # the caller reads it
    # The values of one layer, not of all: deeper encoders take no more.
    assert Encoder(SCHEMES[scheme]).plan(6).bytes_per_token == plan.bytes_per_token


def test_a_second_quantization_of_a_value_takes_a_launch() -> None:
    other = replace(STATIC, scale=0.07)
    encoder = Encoder(STATIC, {"qkv": [STATIC, other, STATIC]})
    plan = encoder.plan(1)
    (extra,) = [step for step in plan.steps if step.quantizes is not None]
    embed = plan.steps[0].value
    assert extra.value is embed and extra.quantizes == other
    assert plan.steps[0].fused == STATIC and {(embed, STATIC), (embed, other)} < set(plan.stored)
    assert plan.launches(16) == 1 + 7 + 1 + 2  # and three linears in place of one
    assert plan.capturable


def test_layers_and_attentions_of_the_reference_take_rows_of_floats() -> None:
    encoder = Encoder(STATIC)
    encoder.layers["inner"] = get_backend("reference", DEVICE, torch.float32).prepare_linear(
        [LinearWeight("inner", make_packed((INNER, HIDDEN), values="int8", activations=STATIC))]
    )
    encoder.quantized = QuantizedAttention(query=STATIC, key=STATIC)
    plan = encoder.plan(1)
    kinds = [type(node) for node in plan.nodes]
    assert kinds.count(Apply) == 1 and kinds.count(AttendRows) == 1 and Attend not in kinds
    # What they make is quantized by a launch of its own.
    assert [type(s.value.node) for s in plan.steps if s.quantizes] == [AttendRows, Apply]
    assert plan.repeatable and not plan.capturable


def test_rows_of_the_caller_are_run_once() -> None:
    encoder = Encoder(STATIC)
    x = encoder.backend.from_tokens(BATCH, torch.ones(5, HIDDEN))
    plan = make_plan(encoder.backend.linear(x, encoder.layers["qkv"]), 4)
    assert not plan.repeatable
    assert plan.launches(16) == 2  # quantize, multiply


def test_a_deep_encoder_is_planned_without_recursion() -> None:
    assert Encoder("none").plan(400).launches(16) == 1 + 7 * 400


def test_a_plan_knows_the_span_of_its_biases() -> None:
    encoder = Encoder("none")
    assert encoder.plan().span is None
    encoder.bias = torch.zeros(HEADS, 9, 9)
    assert encoder.plan().span == 9


def test_operands_that_do_not_fit_are_refused_when_they_are_recorded() -> None:
    encoder = Encoder("none")
    x = encoder.backend.from_tokens(BATCH, torch.ones(5, HIDDEN))
    with pytest.raises(ValueError, match=r"ffn\.0: expected x as floats \[tokens, 48\]"):
        encoder.backend.linear(x, encoder.layers["ffn"])
    with pytest.raises(ValueError, match=r"qkv\.0: activation 'elu'"):
        encoder.backend.linear(x, encoder.layers["qkv"], activation="elu")
    with pytest.raises(ValueError, match=r"qkv\.0: expected residual \[0, 96\]"):
        encoder.backend.linear(x, encoder.layers["qkv"], residual=x)
