"""The bound passes what dense PyTorch would get wrong too, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sparse_runtime.kernels.attention.reference import attention
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.testing import (
    assert_close_to_oracle,
    attention_slack,
    errors_of,
    linear_in_order,
    linear_oracle,
    make_linear_problem,
)


@pytest.mark.parametrize("structure", ["dense", "2:4"])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_a_correct_float_result_passes(structure: str, activation: str | None) -> None:
    problem = make_linear_problem((48, 130), 9, structure)
    oracle, dense = linear_oracle(
        problem.x, problem.packed, problem.bias, activation, problem.residual
    )
    # The same sum in another order: in two halves.
    weight = problem.packed.dequantize()
    y = F.linear(problem.x[:, :65], weight[:, :65]) + F.linear(problem.x[:, 65:], weight[:, 65:])
    y = y + problem.bias
    y = (y if activation is None else F.gelu(y)) + problem.residual
    errors = assert_close_to_oracle(y, oracle, dense)
    assert 0 < errors.largest < 1e-5


def test_one_wrong_element_fails_and_is_named() -> None:
    problem = make_linear_problem((48, 130), 9)
    oracle, dense = linear_oracle(problem.x, problem.packed)
    wrong = dense.clone()
    wrong[5, 7] += 2e-3
    with pytest.raises(
        AssertionError, match=r"nm kernel: max error (1.9|2.0)\d+e-03.*worst at \[5, 7\]"
    ):
        assert_close_to_oracle(wrong, oracle, dense, name="nm kernel")


def test_a_small_error_everywhere_fails_by_its_rms() -> None:
    """Each error is below the largest that dense PyTorch makes, but all are there."""
    oracle = torch.linspace(1, 2, 4096, dtype=torch.float64)
    baseline = oracle.float()
    baseline[7] += 3e-5
    drifted = (oracle + 2e-5).float()
    assert errors_of(drifted, oracle).largest < errors_of(baseline, oracle).largest
    with pytest.raises(AssertionError, match="RMS error"):
        assert_close_to_oracle(drifted, oracle, baseline)


def test_a_baseline_that_is_exact_by_luck_leaves_one_unit_in_the_last_place() -> None:
    oracle = torch.full((4,), 8.0, dtype=torch.float64)
    ulp = torch.finfo(torch.float32).eps * 8
    assert_close_to_oracle(oracle.float() + ulp, oracle, oracle.float())
    with pytest.raises(AssertionError, match="max error"):
        assert_close_to_oracle(oracle.float() + 2 * ulp, oracle, oracle.float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_result_that_is_not_finite_fails(bad: float) -> None:
    oracle = torch.ones(3, dtype=torch.float64)
    wrong = torch.tensor([1.0, bad, 1.0])
    with pytest.raises(AssertionError, match=r"worst at \[1\]"):
        assert_close_to_oracle(wrong, oracle, torch.ones(3))


def test_nan_and_infinity_must_stay_where_the_oracle_has_them() -> None:
    oracle = torch.tensor([1.0, float("nan"), float("inf")], dtype=torch.float64)
    assert_close_to_oracle(oracle.float(), oracle, oracle.float())
    for hidden in ([1.0, 0.0, float("inf")], [1.0, float("nan"), -float("inf")]):
        with pytest.raises(AssertionError, match="max error inf"):
            assert_close_to_oracle(torch.tensor(hidden), oracle, oracle.float())


def test_shapes_must_agree_and_empty_outputs_are_right() -> None:
    with pytest.raises(AssertionError, match=r"expected \[2, 3\], got \[3, 2\]"):
        errors_of(torch.ones(3, 2), torch.ones(2, 3))
    empty = torch.ones(0, 4)
    assert assert_close_to_oracle(empty, empty.double(), empty).largest == 0


@pytest.mark.parametrize(
    "activations",
    [
        ActivationSpec(),
        ActivationSpec("dynamic", "uint8"),
        ActivationSpec("static", "uint8", 0.04, 120),
    ],
    ids=["symmetric", "dynamic", "static"],
)
def test_quantized_inputs_are_part_of_the_oracle(activations: ActivationSpec) -> None:
    problem = make_linear_problem((16, 40), 5, values="int8", activations=activations)
    oracle, dense = linear_oracle(problem.x, problem.packed)
    assert_close_to_oracle(dense, oracle, dense)
    # The plain input is not what the layer multiplies.
    plain = F.linear(problem.x.double(), problem.packed.dequantize(torch.float64))
    with pytest.raises(AssertionError, match="max error"):
        assert_close_to_oracle(plain.float(), oracle, dense)


def test_slack_is_taken_from_each_element_alone() -> None:
    oracle = torch.zeros(3, dtype=torch.float64)
    actual = torch.tensor([0.5, 0.0, 0.25])
    slack = torch.tensor([0.5, 0.5, 0.25])
    assert_close_to_oracle(actual, oracle, torch.zeros(3), slack=slack)
    with pytest.raises(AssertionError, match=r"worst at \[1\]"):
        assert_close_to_oracle(actual.roll(1), oracle, torch.zeros(3), slack=slack / 2)


def test_sums_in_order_err_more_than_sums_in_parts_and_no_more_than_their_bound() -> None:
    x, weight = torch.randn(20, 768), torch.randn(64, 768)
    bias = torch.randn(64)
    oracle = F.linear(x.double(), weight.double(), bias.double())
    in_order = linear_in_order(x, weight, bias)
    parts = zip(x.split(96, 1), weight.split(96, 1), strict=True)
    in_parts = sum(F.linear(a, b) for a, b in parts) + bias
    assert errors_of(in_parts, oracle).rms < errors_of(in_order, oracle).rms < 1e-4
    assert_close_to_oracle(in_parts, oracle, in_order)
    rounded = x.view(torch.int32).bitwise_and(~0x1FFF).view(torch.float32)  # as tf32
    with pytest.raises(AssertionError, match="max error"):
        assert_close_to_oracle(F.linear(rounded, weight, bias), oracle, in_order)


@pytest.mark.parametrize("roundings", [0.0, 8.0])
def test_attention_slack_bounds_weights_that_are_off(roundings: float) -> None:
    """Scores of tens, off by so many roundings each: the slack holds, and a hundredth of it not."""
    lengths, heads, size, scale = [9, 1, 30], 2, 16, 2.0
    qkv = torch.randn(40, 3 * heads * size, generator=torch.Generator().manual_seed(0)) * 2
    slack = attention_slack(qkv, lengths, heads, scale, roundings)
    y = attention(qkv.double(), lengths, heads, scale)
    wrong, start = [], 0
    for length in lengths:
        part = qkv[start : start + length].double()
        q, k, v = part.unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        off = roundings * 2.0**-24 * (q.abs() @ k.abs().transpose(1, 2)) * scale
        signs = torch.randint(0, 2, off.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        scores = q @ k.transpose(1, 2) * scale + 0.99 * signs * (off + 2.0**-22)
        wrong.append((scores.softmax(-1) @ v * (1 + 0.99 * 2.0**-22)).transpose(0, 1).flatten(1))
        start += length
    errors = (torch.cat(wrong) - y).abs()
    assert (errors <= slack).all()
    assert (errors > slack / 100).any()
