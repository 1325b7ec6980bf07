"""The plain references: their reading of packed bytes, their arithmetic, and that they trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sparse_runtime.formats import PackedWeight, cast_values, pack, project
from sparse_runtime.kernels.attention.reference import attention
from sparse_runtime.kernels.block.reference import read_weight as read_block
from sparse_runtime.kernels.dense.reference import read_weight as read_dense
from sparse_runtime.kernels.embedding.reference import embed
from sparse_runtime.kernels.layer_norm.reference import layer_norm
from sparse_runtime.kernels.linear.reference import (
    ACTIVATIONS,
    accumulate,
    float_linear,
    integer_linear,
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_rows_full_range,
    quantize_static,
)
from sparse_runtime.kernels.nm.reference import read_weight as read_nm
from sparse_runtime.kernels.unstructured.reference import read_weight as read_unstructured
from sparse_runtime.spec import VALUE_DTYPES, LinearSpec, Structure, ValueSpec

STRUCTURES = (
    # 2 bits a position; 1; 3 that cross bytes; 4; and M that is no power of two.
    *("dense", "unstructured", "2:4", "1:4", "1:2", "4:8", "5:7", "8:16", "2:3"),
    *("block:4x1", "block:1x4", "block:3x5", "block:8x8", "block:16x16"),
)
# Divides nothing; a single row, column and element; divides everything.
SHAPES = [(13, 21), (1, 9), (9, 1), (1, 1), (16, 32)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed_weight(structure: str, dtype: str, shape: tuple[int, int]) -> PackedWeight:
    parsed, values = Structure.parse(structure), ValueSpec(dtype)
    sparsity = 0.6 if parsed.kind in ("unstructured", "block") else None
    weight, scales = cast_values(project(normal(*shape), parsed, sparsity), values)
    return pack(weight, LinearSpec(shape, parsed, values), scales)


def read(packed: PackedWeight) -> Tensor:
    """What the family's own decoder makes of the packed bytes."""
    spec, tensors = packed.spec, packed.tensors()
    structure, int4 = spec.structure, spec.values.dtype == "int4"
    if structure.kind == "dense":
        return read_dense(tensors["values"], spec.shape, int4)
    if structure.kind == "unstructured":
        return read_unstructured(tensors["values"], tensors["bitmask"], spec.shape, int4)
    if structure.kind == "nm":
        n, m = structure.n, structure.m
        return read_nm(tensors["values"], tensors["positions"], spec.shape, n, m, int4)
    block = (structure.rows, structure.cols)
    return read_block(tensors["values"], tensors["bitmask"], spec.shape, block, int4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", VALUE_DTYPES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_two_independent_decoders_agree(structure: str, dtype: str, shape: tuple[int, int]) -> None:
    packed = packed_weight(structure, dtype, shape)
    weight = read(packed)
    assert weight.dtype == packed.spec.values.torch_dtype
    assert torch.equal(weight, packed.unpack())


@pytest.mark.parametrize("dtype", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("structure", ["dense", "unstructured", "2:4", "5:7", "block:3x5"])
def test_decoders_trace_without_a_break(structure: str, dtype: str) -> None:
    torch._dynamo.reset()
    packed = packed_weight(structure, dtype, (13, 21))
    traced = torch.compile(read, fullgraph=True, backend="eager")
    assert torch.equal(traced(packed), packed.unpack())


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("zero_point", [-128, 0, 127, 255])
def test_integer_sums_are_exact(tokens: int, zero_point: int) -> None:
    # The extremes of both sides, over as many inputs as the widest encoder layer has.
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(-128, 256, (tokens, 4096), generator=generator)
    q[:, ::2] = 255
    weight = torch.randint(-128, 128, (5, 4096), generator=generator).to(torch.int8)
    weight[0] = -128
    total = accumulate(q, zero_point, weight)
    exact = (q.long() - zero_point) @ weight.long().t()
    assert torch.equal(total.long(), exact)
    assert torch.equal(total, total.round())


@pytest.mark.parametrize("activation", [None, *sorted(ACTIVATIONS)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_integer_linear_dequantizes_its_exact_sum(
    activation: str | None, with_bias: bool, with_residual: bool
) -> None:
    x = normal(6, 64)
    packed = packed_weight("dense", "int8", (10, 64))
    bias = normal(10, seed=1) if with_bias else None
    residual = normal(6, 10, seed=2) if with_residual else None
    q, x_scale = quantize_rows(x)
    w_scale = packed.row_scales()
    y = integer_linear(q, 0, x_scale, packed.unpack(), w_scale, bias, activation, residual)
    expected = (q.long() @ packed.unpack().long().t()).double()
    expected = expected * x_scale.double().unsqueeze(1) * w_scale.double()
    expected = expected if bias is None else expected + bias.double()
    expected = expected if activation is None else ACTIVATIONS[activation](expected)
    expected = expected if residual is None else expected + residual.double()
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", ["fp32", "bf16", "fp16"])
def test_float_linear_is_near_the_oracle(dtype: torch.dtype, weight_dtype: str) -> None:
    x, bias, residual = normal(6, 64).to(dtype), normal(10, seed=1), normal(6, 10, seed=2)
    weight = packed_weight("unstructured", weight_dtype, (10, 64)).unpack()
    y = float_linear(x, weight, bias, "gelu", residual.to(dtype))
    oracle = F.gelu(F.linear(x.double(), weight.double(), bias.double())) + residual.double()
    assert y.dtype == dtype
    # The result lies in x's type; the narrower of the two types also rounds the sum's terms.
    error = (y.double() - oracle).abs().max() / oracle.abs().max()
    assert error <= 4 * torch.finfo(dtype).eps


def test_dynamic_quantization_is_symmetric_per_token() -> None:
    x = normal(5, 33) * torch.tensor([1e-42, 1e-3, 1.0, 1e4, 1e37]).unsqueeze(1)
    q, scale = quantize_rows(x)
    assert q.dtype == torch.int8
    assert int(q.abs().max()) == 127
    error = (q.double() * scale.double().unsqueeze(1) - x.double()).abs()
    assert bool((error <= scale.double().unsqueeze(1) * (0.5 + 127 * 2**-22)).all())


def test_dynamic_quantization_of_tokens_without_a_scale() -> None:
    x = torch.tensor([[0.0, -0.0], [float("nan"), 1.0], [1.0, -float("inf")]])
    q, scale = quantize_rows(x)
    assert q.tolist() == [[0, 0]] * 3
    assert scale[0] == 1
    assert not bool(scale[1:].isfinite().any())
    # NaN spreads to the token's whole output, as in floats, and to no other token.
    y = integer_linear(q, 0, scale, torch.ones(4, 2, dtype=torch.int8), torch.ones(4))
    assert y.isnan().all(1).tolist() == [False, True, True]
    assert quantize_rows(torch.zeros(3, 0))[0].shape == (3, 0)
    assert quantize_rows(torch.zeros(0, 3))[1].shape == (0,)


def test_asymmetric_quantization_has_zero_and_every_value_in_range() -> None:
    x = (normal(5, 33) + 1) * torch.tensor([1e-30, 1e-3, 1.0, 1e4, 1e37]).unsqueeze(1)
    q, scale, zero_point = quantize_rows_asymmetric(x)
    assert q.amin(1).tolist() == [0] * 5
    assert q.amax(1).tolist() == [255] * 5
    error = ((q - zero_point.unsqueeze(1)).double() * scale.double().unsqueeze(1) - x).abs()
    # Half a step from rounding the value, and half from rounding the zero point at the ends.
    assert bool((error <= scale.double().unsqueeze(1) * (1 + 255 * 2**-22)).all())


def test_asymmetric_quantization_of_tokens_without_a_scale() -> None:
    x = torch.tensor([[0.0, -0.0], [float("nan"), 1.0], [1.0, -float("inf")]])
    q, scale, zero_point = quantize_rows_asymmetric(x)
    assert (q.tolist(), zero_point.tolist()) == ([[0, 0]] * 3, [0] * 3)
    y = integer_linear(q, zero_point, scale, torch.ones(4, 2, dtype=torch.int8), torch.ones(4))
    assert y.isnan().all(1).tolist() == [False, True, True]
    assert quantize_rows_asymmetric(torch.zeros(3, 0))[0].shape == (3, 0)
    assert quantize_rows_asymmetric(torch.zeros(0, 3))[1].shape == (0,)


def test_static_quantization_is_that_of_onnx() -> None:
    x = torch.tensor([0.25, 0.75, -0.25, -1e9, 1e9, float("nan"), float("inf"), -float("inf")])
    # Halves go to even: 0.5 -> 0, 1.5 -> 2, -0.5 -> 0.
    assert quantize_static(x, 0.5, 3, 0, 255).tolist() == [3, 5, 3, 0, 255, 3, 255, 0]
    assert quantize_static(x, 0.5, -3, -128, 127).tolist()[:5] == [-3, -1, -3, -128, 127]


class Divisors(TorchFunctionMode):
    """What tensors are divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.__name__ in ("__truediv__", "div", "true_divide", "__rtruediv__", "reciprocal"):
            self.seen.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "quantize",
    [
        quantize_rows,
        quantize_rows_full_range,
        quantize_rows_asymmetric,
        lambda x: quantize_static(x, 0.05, 3, -128, 127),
    ],
)
def test_quotients_are_those_of_two_tensors(quantize) -> None:
    """By a Python number, CUDA multiplies by its reciprocal, which may round to another step."""
    with Divisors() as divisors:
        quantize(normal(3, 5))
    assert divisors.seen and all(isinstance(divisor, Tensor) for divisor in divisors.seen)


def test_layer_norm_and_embedding_are_near_the_oracle() -> None:
    x, weight, bias = normal(6, 32), normal(32, seed=1), normal(32, seed=2)
    oracle = F.layer_norm(x.double(), (32,), weight.double(), bias.double(), 1e-12)
    y = layer_norm(x, weight, bias, 1e-12)
    torch.testing.assert_close(y.double(), oracle, rtol=1e-5, atol=1e-5)
    words, places = normal(11, 4), normal(5, 4, seed=1)
    ids = (torch.tensor([10, 0, 3]), torch.tensor([0, 4, 1]))
    expected = torch.stack([words[i] + places[j] for i, j in zip(*ids, strict=True)])
    assert torch.equal(embed(ids, (words, places)), expected)


HEADS, HEAD_SIZE = 3, 8
LENGTHS = [5, 1, 12, 3]


@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_is_that_of_each_sequence_alone(with_bias: bool) -> None:
    qkv = normal(sum(LENGTHS), 3 * HEADS * HEAD_SIZE)
    bias = normal(HEADS, 20, 20, seed=1) if with_bias else None
    # The second and third sequences start in the middle of their padded rows.
    positions = torch.cat(
        [torch.arange(n) + shift for n, shift in zip(LENGTHS, (0, 7, 8, 0), strict=True)]
    )
    y = attention(qkv, LENGTHS, HEADS, 0.3, bias, positions)
    assert y.shape == (sum(LENGTHS), HEADS * HEAD_SIZE)
    for part, rows, at in zip(
        y.split(LENGTHS), qkv.split(LENGTHS), positions.split(LENGTHS), strict=True
    ):
        q, k, v = (
            t.reshape(-1, HEADS, HEAD_SIZE).transpose(0, 1).double() for t in rows.chunk(3, dim=1)
        )
        mask = None if bias is None else bias[:, at][:, :, at].double()
        oracle = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
        oracle = oracle.transpose(0, 1).reshape(len(rows), -1)
        torch.testing.assert_close(part.double(), oracle, rtol=1e-5, atol=1e-5)


def test_attention_over_no_tokens_is_empty() -> None:
    assert attention(torch.zeros(0, 72), [], HEADS, 1.0).shape == (0, 24)


def test_the_arithmetic_traces_without_a_break() -> None:
    torch._dynamo.reset()
    packed = packed_weight("2:4", "int8", (30, 16))

    def layer(x: Tensor) -> Tensor:
        q, scale = quantize_rows(x)
        y = integer_linear(q, 0, scale, read(packed), packed.row_scales(), None, "gelu", None)
        return attention(float_linear(y, torch.eye(30)), [2, 4], 2, 0.5)

    x = normal(6, 16)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
