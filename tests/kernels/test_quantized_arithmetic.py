"""Foreign families' integer arithmetic, bit for bit against NumPy with int64 sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_runtime.kernels.attention.reference import attention
from sparse_runtime.kernels.linear.reference import (
    Quantizer,
    integer_linear,
    quantize_rows_full_range,
    quantize_static,
    requantize,
)

F32 = np.float32
INT8 = Quantizer(0.0625, 0, -128, 127)
UINT8 = Quantizer(0.05, 131, 0, 255)
NARROW = Quantizer(0.01, -7, -128, 127)  # clamps most of a normal distribution


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def quantized(x: Any, q: Quantizer) -> Any:
    """int64 of float32, zero point taken off."""
    return np.clip(np.rint(x / F32(q.scale)) + q.zero_point, q.low, q.high).astype(
        np.int64
    ) - np.int64(q.zero_point)


def given_back(x: Any, q: Quantizer | None) -> Any:
    return x if q is None else quantized(x, q).astype(F32) * F32(q.scale)


def same(ours: Tensor, theirs: Any) -> None:
    assert ours.dtype == torch.float32
    assert torch.equal(ours, torch.from_numpy(np.ascontiguousarray(theirs)))


def test_full_range_int8_is_divided_and_rounded_half_to_even() -> None:
    # 300 tokens of 33 features over the whole range of scales.
    x = normal(300, 33) * torch.logspace(-30, 30, 300).unsqueeze(1)
    q, scale = quantize_rows_full_range(x)
    expected_scale = np.abs(x.numpy()).max(1) / F32(127.5)
    same(scale, expected_scale)
    expected = np.clip(np.rint(x.numpy() / expected_scale[:, None]), -128, 127)
    assert q.dtype == torch.int8
    assert torch.equal(q, torch.from_numpy(expected.astype(np.int8)))
    # Both ends are reached, which the narrow range never does.
    assert (int(q.min()), int(q.max())) == (-128, 127)


def test_full_range_int8_ties_and_ends() -> None:
    # Scale 2: halves go to even, the largest magnitude lies on a tie itself.
    x = torch.tensor([[255.0, 1.0, 3.0, -1.0, -3.0, 5.0], [-255.0, 253.0, -253.0, 0.0, 2.0, 4.0]])
    q, scale = quantize_rows_full_range(x)
    assert scale.tolist() == [2.0, 2.0]
    assert q.tolist() == [[127, 0, 2, 0, -2, 2], [-128, 126, -126, 0, 1, 2]]


def test_full_range_int8_of_tokens_without_a_scale() -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[0.0, -0.0], [nan, 1.0], [1.0, -inf], [1e-45, 0.0], [3e38, -3e38]])
    q, scale = quantize_rows_full_range(x)
    assert q.tolist()[:3] == [[0, 0]] * 3
    assert scale[0] == 1
    assert scale.isfinite().tolist() == [True, False, False, True, True]
    assert scale[3] == torch.finfo(torch.float32).tiny
    assert q.tolist()[4] == [127, -128]
    y = integer_linear(q, 0, scale, torch.ones(4, 2, dtype=torch.int8), torch.ones(4))
    assert y.isnan().all(1).tolist() == [False, True, True, False, False]
    # One feature, no features, no tokens.
    assert quantize_rows_full_range(torch.tensor([[255.0], [-255.0]]))[0].tolist() == [
        [127],
        [-128],
    ]
    assert quantize_rows_full_range(torch.zeros(3, 0))[1].tolist() == [1, 1, 1]
    assert quantize_rows_full_range(torch.zeros(0, 3))[1].shape == (0,)


def test_full_range_int8_is_that_of_compressed_tensors() -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True)
    x = normal(2000, 64)
    scale, zero = calculate_qparams(x.amin(1, keepdim=True), x.amax(1, keepdim=True), args)
    ours, our_scale = quantize_rows_full_range(x)
    assert torch.equal(our_scale, scale.flatten())
    assert torch.equal(ours, quantize(x, scale, zero, args, dtype=torch.int8))


def test_requantized_values_are_those_of_onnx() -> None:
    nan, inf = float("nan"), float("inf")
    y = torch.tensor([0.25, 0.75, -0.25, 1.25, 1e9, -1e9, inf, -inf, nan, 0.0])
    # Scale 0.5, zero point 3 of 0..255: halves go to even, the ends are -1.5 and 126.
    out = requantize(y, Quantizer(0.5, 3, 0, 255))
    assert out.tolist() == [0.0, 1.0, 0.0, 1.0, 126.0, -1.5, 126.0, -1.5, 0.0, 0.0]
    assert requantize(y, None) is y
    onnx_like = requantize(normal(50, 40), UINT8)
    same(onnx_like, given_back(normal(50, 40).numpy(), UINT8))
    # What is quantized once stays as it is.
    assert torch.equal(requantize(onnx_like, UINT8), onnx_like)


@pytest.mark.parametrize("group_cols", [0, 1, 8, 13, 100])
@pytest.mark.parametrize("with_zero_points", [False, True])
@pytest.mark.parametrize("outputs", [None, UINT8, NARROW])
def test_integer_linear_is_exact(
    outputs: Quantizer | None, with_zero_points: bool, group_cols: int
) -> None:
    # 43 inputs: groups of one, short last groups, one group longer than the row, and no groups.
    tokens, rows, cols, zero_point = 9, 7, 43, 131
    x = integers(0, 255, tokens, cols)
    weight = integers(-128, 127, rows, cols, seed=1).to(torch.int8)
    groups = -(-cols // group_cols) if group_cols else 1
    scale = normal(rows, groups, seed=2).abs() / 100 + 1e-3
    zeros = integers(-128, 127, rows, groups, seed=3) if with_zero_points else None
    bias, residual = normal(rows, seed=4), normal(tokens, rows, seed=5)
    y = integer_linear(
        x,
        zero_point,
        torch.tensor([0.02]),
        weight,
        scale,
        bias,
        "relu",
        residual,
        weight_zero_point=zeros,
        group_cols=group_cols,
        outputs=outputs,
    )
    total = np.zeros((tokens, rows), dtype=F32)
    for group in range(groups):
        at = slice(group * group_cols, (group + 1) * group_cols) if group_cols else slice(None)
        wide = weight.numpy()[:, at].astype(np.int64)
        if zeros is not None:
            wide = wide - zeros.numpy()[:, group : group + 1]
        whole = (x.numpy()[:, at] - zero_point) @ wide.T
        part = whole.astype(F32) * F32(0.02) * scale.numpy()[:, group]
        total = part if group == 0 else total + part
    total = given_back(total + bias.numpy(), outputs)
    same(y, np.maximum(total, F32(0)) + residual.numpy())


def test_sums_with_both_zero_points_are_exact_at_the_extremes() -> None:
    # 255 * 255 over the widest layer: beyond what float32 holds.
    q = torch.full((2, 4096), 255)
    weight = torch.full((3, 4096), 127, dtype=torch.int8)
    zeros = torch.tensor([-128, 127, 0])
    one = torch.ones(1)
    y = integer_linear(q, 0, one, weight, torch.ones(3), weight_zero_point=zeros)
    assert y.tolist() == [[4096 * 255 * 255, 0, 4096 * 255 * 127]] * 2


def test_zero_points_per_token_meet_zero_points_per_row() -> None:
    q, weight = integers(0, 255, 5, 11), integers(-128, 127, 4, 11, seed=1).to(torch.int8)
    token_zeros, row_zeros = integers(0, 255, 5, seed=2), integers(-128, 127, 4, seed=3)
    x_scale, w_scale = normal(5, seed=4).abs(), normal(4, seed=5).abs()
    y = integer_linear(q, token_zeros, x_scale, weight, w_scale, weight_zero_point=row_zeros)
    whole = (q - token_zeros[:, None]).numpy() @ (weight.long() - row_zeros[:, None]).numpy().T
    same(y, whole.astype(F32) * x_scale.numpy()[:, None] * w_scale.numpy())


HEADS, HEAD_SIZE, LENGTHS = 3, 8, [5, 1, 12]
ALL = {
    "query": UINT8,
    "key": INT8,
    "probabilities": Quantizer(1 / 256, 0, 0, 255),
    "value": Quantizer(0.03, -5, -128, 127),
    "scores": Quantizer(0.3, 128, 0, 255),
    "context": Quantizer(0.02, 4, -128, 127),
}


def product(left: Any, right: Any, of_left: Quantizer | None, of_right: Quantizer | None) -> Any:
    if of_left is not None and of_right is not None:
        whole = quantized(left, of_left) @ quantized(right, of_right)
        return whole.astype(F32) * F32(of_left.scale) * F32(of_right.scale)
    left, right = given_back(left, of_left), given_back(right, of_right)
    # The float product's own order of summation is PyTorch's.
    return torch.matmul(torch.from_numpy(left), torch.from_numpy(right)).numpy()


def expected_attention(qkv: Tensor, scale: float, bias: Any, steps: dict[str, Quantizer]) -> Any:
    outputs, start = [], 0
    for length in LENGTHS:
        rows = qkv[start : start + length].reshape(length, 3, HEADS, HEAD_SIZE)
        q, k, v = (rows[:, i].transpose(0, 1).contiguous().numpy() for i in range(3))
        scores = product(q, k.transpose(0, 2, 1), steps.get("query"), steps.get("key"))
        scores = given_back(scores, steps.get("scores")) * F32(scale)
        if bias is not None:
            scores = scores + bias[:, :length, :length].numpy()
        p = torch.from_numpy(scores).softmax(-1).numpy()
        context = product(p, v, steps.get("probabilities"), steps.get("value"))
        context = given_back(context, steps.get("context"))
        outputs.append(context.transpose(1, 0, 2).reshape(length, -1))
        start += length
    return np.concatenate(outputs)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ALL,
        ("query", "key"),
        ("query", "key", "probabilities", "value"),
        ("query",),
        ("value", "scores"),
        ("context",),
    ],
    ids=lambda names: "all" if names is ALL else "+".join(names),
)
def test_quantized_attention_is_exact(names: Any, with_bias: bool) -> None:
    # A sequence of one token, short ones; sides quantized both, one alone, none.
    steps = {name: ALL[name] for name in names}
    qkv = normal(sum(LENGTHS), 3 * HEADS * HEAD_SIZE) * 2
    bias = normal(HEADS, 12, 12, seed=1) if with_bias else None
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    y = attention(qkv, LENGTHS, HEADS, 0.35, bias, positions, steps)
    same(y, expected_attention(qkv, 0.35, bias, steps))
    assert not torch.equal(y, attention(qkv, LENGTHS, HEADS, 0.35, bias, positions))


def test_scores_are_scaled_behind_their_requantization() -> None:
    # Two tokens, one head of one feature: scores 6 * 6 = 36, requantized in steps of 10 to 40.
    whole = Quantizer(1.0, 0, -128, 127)
    steps = {"query": whole, "key": whole, "scores": Quantizer(10.0, 0, -128, 127)}
    qkv = torch.tensor([[6.0, 6.0, 1.0], [6.0, 0.0, 0.0]])
    y = attention(qkv, [2], 1, 0.01, quantizers=steps)
    same(y, np.full((2, 1), torch.tensor([0.4, 0.0]).softmax(0)[0].item(), dtype=F32))


def test_quantized_attention_of_hazards() -> None:
    nan = float("nan")
    qkv = torch.zeros(4, 3 * HEADS * HEAD_SIZE)
    qkv[1] = 1e30  # beyond every range
    qkv[2, 0] = nan
    y = attention(qkv, [4], HEADS, 0.35, quantizers=ALL)
    assert bool(y.isfinite().all())  # a static quantizer takes NaN for 0
    assert torch.equal(y, attention(qkv.nan_to_num(nan=0.0), [4], HEADS, 0.35, quantizers=ALL))
    assert attention(torch.zeros(0, 72), [], HEADS, 1.0, quantizers=ALL).shape == (0, 24)
    half = attention(qkv.bfloat16(), [4], HEADS, 0.35, quantizers=ALL)
    assert half.dtype == torch.bfloat16


def test_quantized_arithmetic_traces_without_a_break() -> None:
    torch._dynamo.reset()
    weight = integers(-128, 127, 72, 16).to(torch.int8)
    zeros = integers(-128, 127, 72, 4, seed=1)
    scales = normal(72, 4).abs() / 50

    def layer(x: Tensor) -> Tensor:
        q, scale = quantize_rows_full_range(x)
        q = q + quantize_static(x, *INT8)
        y = integer_linear(
            *(q, 0, scale, weight, scales),
            weight_zero_point=zeros,
            group_cols=4,
            outputs=UINT8,
        )
        return attention(y, [2, 4], 3, 0.5, quantizers=ALL)

    x = normal(6, 16)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
