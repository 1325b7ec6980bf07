"""Fake quantization: the integers are those of packing, the gradients those of the estimators."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparse_runtime.compress import (
    Pattern,
    attach_fake_quant,
    attach_masks,
    bake,
    encoder_linears,
    freeze_ranges,
    read_quantization,
    remove_fake_quant,
)
from sparse_runtime.compress.activation_quant import DynamicFakeQuant, StaticFakeQuant
from sparse_runtime.compress.fake_quant import WeightFakeQuant
from sparse_runtime.formats import cast_values
from sparse_runtime.kernels.linear.reference import (
    Quantizer,
    dequantize,
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_static,
)
from sparse_runtime.spec import ValueSpec

IDS = torch.arange(12).view(2, 6)
# 10 rows in chunks of 4, 24 columns in groups of 9: both end in a shorter one.
VALUES = [
    ValueSpec(dtype, *rest)
    for dtype in ("int8", "int4")
    for rest in (("tensor",), ("row",), ("chunk", 4), ("group", 0, False, 9))
]


def weight(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(10, 24, generator=generator)
    made[3] = 0  # a row without a scale of its own
    made[:, ::4] = 0
    return made


@pytest.mark.parametrize("values", VALUES, ids=lambda values: f"{values.dtype}-{values.scales}")
def test_weights_are_the_integers_that_packing_makes(values: ValueSpec) -> None:
    quantizer, source = WeightFakeQuant(values), weight()
    q, scales = cast_values(source, values)
    assert scales is not None
    assert torch.equal(quantizer.scales_of(source), scales)
    left = quantizer(source)
    assert torch.equal(left, q.float() * values.spread(scales, 10, 24))
    assert torch.equal(left == 0, q == 0)
    assert not left[source == 0].any()


def test_the_gradient_of_a_weight_passes_straight_through() -> None:
    linear, x = nn.Linear(24, 10), torch.randn(5, 24)
    attach_fake_quant({"a": linear}, weights=ValueSpec("int4"), activations="none")
    (linear(x) * torch.arange(10.0)).sum().backward()
    original = linear.parametrizations.weight.original
    # d/dW of sum(t, n) n * x[t] W[n]: the quantizer is not there.
    expected = torch.arange(10.0)[:, None] * x.sum(0)
    torch.testing.assert_close(original.grad, expected)


def test_fixed_scales_clip_and_stop_the_gradient_beyond_the_range() -> None:
    quantizer = WeightFakeQuant(ValueSpec("int4", "tensor"), torch.tensor([0.5]))
    # 3.74 rounds to 7 steps, 3.76 would round to 8 and is clamped to 7.
    source = torch.tensor([[3.74, 3.76, -9.0, 0.3]], requires_grad=True)
    left = quantizer(source)
    assert left.tolist() == [[3.5, 3.5, -3.5, 0.5]]
    left.sum().backward()
    assert source.grad.tolist() == [[1.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("kind", ["dynamic", "symmetric"])
def test_dynamic_inputs_are_those_of_the_reference(kind: str) -> None:
    quantizer, x = DynamicFakeQuant(kind), torch.randn(2, 3, 24, requires_grad=True)
    left, rows = quantizer(x), x.detach().view(6, 24)
    if kind == "symmetric":
        q, scale = quantize_rows(rows)
        expected = q.float() * scale[:, None]
    else:
        q, scale, zero = quantize_rows_asymmetric(rows)
        expected = (q - zero[:, None]).float() * scale[:, None]
    assert torch.equal(left, expected.view(2, 3, 24))
    (left * 3).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 3))


def test_static_inputs_are_those_of_the_reference_and_clipped_ones_have_no_gradient() -> None:
    quantizer = StaticFakeQuant()
    quantizer(torch.tensor([-1.0, 0.5, 4.1]))
    quantizer.eval()
    spec = quantizer.spec()
    assert (spec.scheme, spec.dtype) == ("static", "uint8")
    x = torch.linspace(-3, 6, 91, requires_grad=True)
    left = quantizer(x)
    plain = Quantizer(spec.scale, spec.zero_point, 0, 255)
    expected = dequantize(quantize_static(x.detach(), *plain), plain)
    assert torch.equal(left, expected)
    left.sum().backward()
    inside = (x >= -1.01) & (x <= 4.11)
    assert torch.equal(x.grad, inside.float())


def test_ranges_are_a_moving_average_with_a_delayed_start_until_they_freeze() -> None:
    quantizer = StaticFakeQuant(delay=2, averaging=0.25)
    batches = [torch.tensor([-1.0, 3.0]), torch.tensor([-2.0, 7.0]), torch.tensor([0.0, 3.0])]
    with pytest.raises(ValueError, match="observed 0 batches and starts behind 2"):
        quantizer.spec()
    # The first sets the range; the next moves it by a quarter: -1.25, 4.0.
    for batch in batches[:2]:
        assert torch.equal(quantizer(batch), batch)
    assert (quantizer.low.item(), quantizer.high.item()) == (-1.25, 4.0)
    assert not quantizer.is_on
    assert not torch.equal(quantizer(torch.tensor([-2.0, 0.013])), torch.tensor([-2.0, 0.013]))
    quantizer.freeze()
    before = quantizer.low.clone()
    quantizer(batches[2] * 100)
    assert torch.equal(quantizer.low, before)
    # In evaluation nothing moves, frozen or not.
    quantizer.frozen = False
    quantizer.eval()(batches[2] * 100)
    assert torch.equal(quantizer.low, before)


def test_values_on_one_side_of_zero_and_none_at_all_keep_zero_exact() -> None:
    for x in (torch.tensor([2.0, 3.0]), torch.tensor([-3.0, -2.0]), torch.zeros(2)):
        quantizer = StaticFakeQuant()
        quantizer(x)
        assert quantizer(torch.zeros(1)).item() == 0
        assert quantizer.spec().scale > 0


def test_a_mask_keeps_its_pattern_under_quantization_through_training(make_model) -> None:
    model = make_model("bert").train()
    linears = encoder_linears(model)
    pattern = Pattern.parse("2:4")
    attach_masks(linears, {n: pattern.mask(li.weight.detach().abs()) for n, li in linears.items()})
    values = ValueSpec("int8", "row")
    attach_fake_quant(linears, weights=values, activations="static")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS).logits.square().sum().backward()
        optimizer.step()
        for linear in linears.values():
            assert bool(((linear.weight.view(-1, 4) != 0).sum(1) <= 2).all())
    read = read_quantization(model)
    assert read.keys() == linears.keys()
    for name, linear in linears.items():
        source = linear.weight.detach()
        q, scales = cast_values(source, values)
        # Scales are of the masked weight: casting what is left gives the same integers again.
        assert torch.equal(read[name].integers(name, source), q)
        torch.testing.assert_close(read[name].scales, scales)
    assert freeze_ranges(model) == len(linears)


def test_baked_models_compute_as_the_fake_quantized_weights_did(make_model) -> None:
    model = make_model("bert")
    linears = encoder_linears(model)
    attach_fake_quant(linears, weights=ValueSpec("int8"), activations="none")
    before = model(input_ids=IDS).logits
    assert torch.equal(bake(model)(input_ids=IDS).logits, before)


def test_removing_and_copying(make_model) -> None:
    model = make_model("bert")
    before, keys = model(input_ids=IDS).logits, set(model.state_dict())
    linears = encoder_linears(model)
    outputs = [name for name in linears if name.endswith("query")]
    attach_fake_quant(linears, weights=ValueSpec("int8"), activations="static", outputs=outputs)
    with pytest.raises(ValueError, match=r"query\.input_fake_quant: observed 0 batches"):
        read_quantization(model)
    model.train()(input_ids=IDS)
    model.eval()
    copied = copy.deepcopy(model)
    assert torch.equal(copied(input_ids=IDS).logits, model(input_ids=IDS).logits)
    read = read_quantization(copied)
    assert {name for name, one in read.items() if one.outputs is not None} == set(outputs)
    bake(model)
    remove_fake_quant(model)
    assert set(model.state_dict()) == keys
    # Only the weights' rounding is left.
    assert (model(input_ids=IDS).logits - before).abs().max() < 1e-2
    assert not read_quantization(model)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"activations": "static8"}, "activations 'static8': expected 'static'"),
        ({"outputs": ["b"]}, "outputs b: .*b that are not given"),
        ({"outputs": ["a"], "activations": "dynamic"}, "with static activations"),
        ({"weights": ValueSpec("fp32")}, "expected symmetric int8 or int4"),
        ({"weights": ValueSpec("int8", "row", 0, True)}, "expected symmetric int8 or int4"),
        ({"delay": -1}, "delay -1"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, object], match: str) -> None:
    given = {"weights": ValueSpec("int8")} | arguments
    with pytest.raises(ValueError, match=match):
        attach_fake_quant({"a": nn.Linear(4, 2)}, **given)


def test_bfloat16_weights_and_a_second_quantizer_are_refused() -> None:
    linear = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="a: expected a float32 weight"):
        attach_fake_quant({"a": copy.deepcopy(linear).bfloat16()}, weights=ValueSpec("int8"))
    attach_fake_quant({"a": linear}, weights=ValueSpec("int8"))
    with pytest.raises(ValueError, match="a: is fake-quantized already"):
        attach_fake_quant({"a": linear}, weights=ValueSpec("int8"))
    with pytest.raises(ValueError, match="fake quantization after them"):
        attach_masks({"a": linear})
