"""The arithmetic of a linear layer, in plain PyTorch: what every fast kernel must reproduce.

    y[t, n] = activation(sum_k x[t, k] * w[n, k] + bias[n]) + residual[t, n]

With integer weights and quantized inputs the sum is taken over integers, exactly, and then
dequantized in float32, left to right: ``float(sum) * x_scale[t] * w_scale[n] + bias[n]``.
"""

from __future__ import annotations

from collections.abc import Callable

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


def quantize_static(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """ONNX QuantizeLinear: ``clamp(round_half_even(x / scale) + zero_point, low, high)``.

    NaN becomes ``zero_point``.

    Returns:
        int32 of x's shape.
    """
    q = torch.nan_to_num(torch.round(x.float() / scale), nan=0.0) + zero_point
    return q.clamp(low, high).to(torch.int32)


def accumulate(q: Tensor, zero_point: int, weight: Tensor) -> Tensor:
    """``sum_k (q[t, k] - zero_point) * weight[n, k]``, exact: float64 holds integers to 2**53.

    Args:
        q: integers [tokens, in].
        zero_point: the quantized value of 0.
        weight: int8 [out, in].

    Returns:
        float64 [tokens, out] with integer values.
    """
    return F.linear(q.double() - zero_point, weight.double())


def integer_linear(
    q: Tensor,
    zero_point: int,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A linear layer on quantized inputs.

    Args:
        q: integers [tokens, in].
        zero_point: the quantized value of 0.
        x_scale: float32 [tokens] or [1].
        weight: int8 [out, in].
        weight_scale: float32 [out].
        bias: float [out] or None.
        activation: a key of ``ACTIVATIONS`` or None.
        residual: float [tokens, out], added last, or None.

    Returns:
        float32 [tokens, out].
    """
    y = accumulate(q, zero_point, weight).float() * x_scale.unsqueeze(1) * weight_scale
    return _finish(y, bias, activation, residual)


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
