"""The arithmetic of a linear layer, in plain PyTorch: what every fast kernel must reproduce.

    y[t, n] = activation(sum_k x[t, k] * w[n, k] + bias[n]) + residual[t, n]

With integer weights and quantized inputs the sum is taken over integers, exactly, and then
dequantized in float32, left to right: ``float(sum) * x_scale[t] * w_scale[n] + bias[n]``. Weights
whose groups of inputs have scales of their own have one such sum a group; the products
``float(sum) * x_scale[t] * w_scale[n, group]`` are added in float32 in the groups' order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # the erf form, as in BERT
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}

INT8_MAX = 127
UINT8_MAX = 255
FULL_INT8_MAX = 127.5  # half of the 255 steps from -128 to 127


class Quantizer(NamedTuple):
    """A static quantizer: ``q = clamp(round_half_even(x / scale) + zero_point, low, high)``."""

    scale: float
    zero_point: int
    low: int
    high: int


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Dynamic symmetric int8, one scale per token.

    With ``m = max|x|``, at least 127 times the smallest normal float32: ``scale = m / 127`` and
    ``q = round_half_even(x * (127 / m))``. An all-zero token has scale 1. A token with NaN or
    infinity has zeros and a scale of NaN or infinity, which make every output NaN.

    Args:
        x: float [tokens, features].

    Returns:
        (int8 [tokens, features], float32 scales [tokens])
    """
    x = x.float()
    if x.shape[1] == 0:
        return x.to(torch.int8), x.new_ones(x.shape[0])
    largest = x.abs().amax(1)
    limit = torch.full_like(largest, INT8_MAX)
    clamped = largest.clamp_min(INT8_MAX * torch.finfo(torch.float32).tiny)
    # limit / clamped divides two tensors: a Python number over a tensor rounds twice.
    scaled = x * (limit / clamped).unsqueeze(1)
    q = torch.nan_to_num(scaled, nan=0.0).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8)
    return q, torch.where(largest == 0, torch.ones_like(largest), clamped / limit)


def quantize_rows_full_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Dynamic symmetric int8 over -128..127, one scale per token.

    ``scale = max|x| / 127.5``, at least the smallest normal float32 and 1 for an all-zero token;
    ``q = clamp(round_half_even(x / scale), -128, 127)``. Bit for bit the dynamic int8 activations
    of compressed-tensors (``calculate_qparams`` and ``quantize``, symmetric, 8 bits, a token each).
    Those of torchao (Int8DynamicActivationInt8WeightConfig) have the same scale and multiply by its
    float32 reciprocal: ties, such as the largest magnitude itself, may fall on the other side. A
    token with NaN or infinity has zeros and a scale of NaN or infinity, which make every output
    NaN.

    Args:
        x: float [tokens, features].

    Returns:
        (int8 [tokens, features], float32 scales [tokens])
    """
    x = x.float()
    if x.shape[1] == 0:
        return x.to(torch.int8), x.new_ones(x.shape[0])
    largest = x.abs().amax(1)
    scale = largest / torch.full_like(largest, FULL_INT8_MAX)
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    scale = torch.where(largest == 0, torch.ones_like(scale), scale)
    divided = torch.nan_to_num(x / scale.unsqueeze(1), nan=0.0)
    return divided.round().clamp(-INT8_MAX - 1, INT8_MAX).to(torch.int8), scale


def quantize_rows_asymmetric(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Dynamic uint8, one scale and one zero point per token: 0 and all values are in its range.

    With ``low = min(x, 0)`` and ``high = max(x, 0)``: ``scale = high / 255 - low / 255``, at least
    the smallest normal float32 and 1 for an all-zero token; with ``i = 1 / scale``,
    ``zero_point = round_half_even(-low * i)`` and ``q = round_half_even(x * i) + zero_point``, both
    clamped to 0..255. A token with NaN or infinity has zeros and scale NaN.

    Args:
        x: float [tokens, features].

    Returns:
        (int32 [tokens, features], float32 scales [tokens], int32 zero points [tokens])
    """
    x = x.float()
    if x.shape[1] == 0:
        zeros = torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
        return x.to(torch.int32), x.new_ones(x.shape[0]), zeros
    # Both are NaN where a value is, and one of them is infinite where a value is.
    low, high = x.amin(1), x.amax(1)
    finite = torch.isfinite(low) & torch.isfinite(high)
    low, high = low.clamp_max(0), high.clamp_min(0)
    levels = torch.full_like(low, UINT8_MAX)
    scale = (high / levels - low / levels).clamp_min(torch.finfo(torch.float32).tiny)
    scale = torch.where(low == high, torch.ones_like(scale), scale)
    inverse = torch.ones_like(scale) / scale
    zero_point = (-low * inverse).round().clamp(0, UINT8_MAX)
    q = (x * inverse.unsqueeze(1)).round_().add_(zero_point.unsqueeze(1)).clamp_(0, UINT8_MAX)
    q = q.masked_fill_(~finite.unsqueeze(1), 0).to(torch.int32)
    zero_point = torch.where(finite, zero_point, torch.zeros_like(zero_point)).to(torch.int32)
    return q, torch.where(finite, scale, torch.full_like(scale, torch.nan)), zero_point


def quantize_static(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """ONNX QuantizeLinear: ``clamp(round_half_even(x / scale) + zero_point, low, high)``.

    NaN becomes ``zero_point``.

    Returns:
        int32 of x's shape.
    """
    x = x.float()
    # By a tensor on x's device: CUDA multiplies by the reciprocal of a Python number.
    q = torch.nan_to_num(torch.round(x / x.new_full((), scale)), nan=0.0) + zero_point
    return q.clamp(low, high).to(torch.int32)


def dequantize(q: Tensor, quantizer: Quantizer) -> Tensor:
    """``(q - zero_point) * scale`` in float32."""
    return (q - quantizer.zero_point).float() * quantizer.scale


def requantize(y: Tensor, quantizer: Quantizer | None) -> Tensor:
    """What a static quantizer leaves of floats, float32; None leaves them as they are.

    ``(clamp(round_half_even(y / scale) + zero_point, low, high) - zero_point) * scale``, ONNX
    QuantizeLinear and DequantizeLinear. NaN becomes 0.
    """
    if quantizer is None:
        return y
    return dequantize(quantize_static(y, *quantizer), quantizer)


def accumulate(
    q: Tensor,
    zero_point: int | Tensor,
    weight: Tensor,
    weight_zero_point: Tensor | None = None,
) -> Tensor:
    """``sum_k (q[t, k] - zero_point) * (weight[n, k] - weight_zero_point[n])``, exact.

    float64 holds integers to 2**53.

    Args:
        q: integers [tokens, in].
        zero_point: the quantized value of 0, or integers [tokens]: of each token.
        weight: int8 [out, in].
        weight_zero_point: integers [out], or None: 0.

    Returns:
        float64 [tokens, out] with integer values.
    """
    if isinstance(zero_point, Tensor):
        zero_point = zero_point.unsqueeze(1)
    wide = weight.double()
    if weight_zero_point is not None:
        wide = wide - weight_zero_point.unsqueeze(1)
    return F.linear(q.double() - zero_point, wide)


def integer_product(
    q: Tensor,
    zero_point: int | Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None = None,
    group_cols: int = 0,
) -> Tensor:
    """:func:`accumulate`, dequantized: float32 [tokens, out].

    Args:
        q: integers [tokens, in].
        zero_point: the quantized value of 0, or integers [tokens]: of each token.
        x_scale: float32 [tokens] or [1].
        weight: int8 [out, in].
        weight_scale: float32 [out, groups].
        weight_zero_point: integers [out, groups], or None: 0.
        group_cols: consecutive inputs that share a scale, the last group may have fewer; 0 is all.
    """
    length = group_cols or weight.shape[1]

    def product(group: int) -> Tensor:
        at = slice(group * length, (group + 1) * length)
        zero = None if weight_zero_point is None else weight_zero_point[:, group]
        total = accumulate(q[:, at], zero_point, weight[:, at], zero)
        return total.float() * x_scale.unsqueeze(1) * weight_scale[:, group]

    return reduce(torch.add, map(product, range(weight_scale.shape[1])))


def integer_linear(
    q: Tensor,
    zero_point: int | Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    *,
    weight_zero_point: Tensor | None = None,
    group_cols: int = 0,
    outputs: Quantizer | None = None,
) -> Tensor:
    """A linear layer on quantized inputs.

    Output quantizers, between bias and activation, are those of QAT checkpoints (SparseML, Prune
    Once For All); weight zero points those of ONNX MatMulInteger and QLinearMatMul.

    Args:
        q: integers [tokens, in].
        zero_point: the quantized value of 0, or integers [tokens]: of each token.
        x_scale: float32 [tokens] or [1].
        weight: int8 [out, in].
        weight_scale: float32 [out], or [out, groups].
        bias: float [out] or None.
        activation: a key of ``ACTIVATIONS`` or None.
        residual: float [tokens, out], added last, or None.
        weight_zero_point: integers of ``weight_scale``'s shape, or None: 0.
        group_cols: as in :func:`integer_product`.
        outputs: requantizes ``x w + bias``, or None.

    Returns:
        float32 [tokens, out].
    """
    if weight_scale.ndim == 1:
        weight_scale = weight_scale.unsqueeze(1)
    if weight_zero_point is not None and weight_zero_point.ndim == 1:
        weight_zero_point = weight_zero_point.unsqueeze(1)
    y = integer_product(q, zero_point, x_scale, weight, weight_scale, weight_zero_point, group_cols)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return _finish(requantize(y, outputs), None, activation, residual)


def float_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A linear layer in the wider of x's and the weight's float types; [tokens, out] in x's."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    bias = None if bias is None else bias.to(dtype)
    y = F.linear(x.to(dtype), weight.to(dtype), bias)
    return _finish(y, None, activation, residual).to(x.dtype)


def _finish(
    y: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    if bias is not None:
        y = y + bias.to(y.dtype)
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    return y if residual is None else y + residual.to(y.dtype)
