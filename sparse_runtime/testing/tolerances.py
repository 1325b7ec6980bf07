"""How wrong a float result may be: a small multiple of what dense PyTorch gets wrong itself.

A fixed tolerance is too loose for short sums and too tight for long ones. The yardstick here is the
error that the same-precision dense PyTorch operation makes on the same problem, both measured
against float64. There is no allowance for a few bad elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..formats import PackedWeight
from ..kernels.attention.reference import attention
from ..kernels.linear.reference import (
    ACTIVATIONS,
    quantize_rows,
    quantize_rows_asymmetric,
    quantize_static,
)

MULTIPLE = 3.0
"""Default bound: summing in another order changes the largest error by less than this."""

APPROXIMATION = 2.0**-22
"""Largest relative error of ex2.approx and div.full (PTX ISA): two units in the last place."""


@dataclass(frozen=True)
class Errors:
    """Distance of a result from the oracle.

    Attributes:
        largest: largest absolute error.
        rms: root of the mean squared error.
        worst: coordinate of the largest error.
    """

    largest: float
    rms: float
    worst: tuple[int, ...]


def linear_oracle(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What a linear layer on a packed weight should give, and what dense PyTorch gives.

    Both multiply the dequantized weight. Where the layer quantizes its input, both take the input
    as it is after quantization, so that only the arithmetic is compared.

    Args:
        x: float [tokens, in].
        packed: weight, logically [out, in].
        bias: float [out] or None.
        activation: a key of ``kernels.linear.reference.ACTIVATIONS`` or None.
        residual: float [tokens, out], added last, or None.

    Returns:
        (oracle float64 [tokens, out], the same computed in x's dtype)
    """
    exact = _seen_by_the_layer(x, packed)

    def compute(dtype: torch.dtype) -> Tensor:
        weight = packed.dequantize(torch.float64).to(dtype)
        y = F.linear(exact.to(dtype), weight, None if bias is None else bias.to(dtype))
        if activation is not None:
            y = ACTIVATIONS[activation](y)
        return y if residual is None else y + residual.to(dtype)

    return compute(torch.float64), compute(x.dtype)


def linear_in_order(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Dense PyTorch in the worst order there is: one product after the other, in one sum.

    Libraries cut few long sums in parts, which err less, and by how much depends on the device; a
    kernel may add up in any order.

    Args:
        x: float [tokens, in].
        weight: of the same type, [out, in].
        bias: float [out].

    Returns:
        float [tokens, out] of x's type, summed in float32.
    """
    total = torch.zeros(len(x), len(weight), device=x.device)
    for column, inputs in zip(x.float().unbind(1), weight.float().unbind(1), strict=True):
        total.addcmul_(column.unsqueeze(1), inputs)
    return (total + bias.float()).to(x.dtype)


def attention_slack(
    qkv: Tensor, lengths: list[int], heads: int, scale: float, roundings: float = 0.0
) -> Tensor:
    """What approximate instructions, and scores that are rounded, may change of attention.

    Weights ``p`` that are wrong by a factor 1 + e each change ``y = sum(p v)`` by no more than
    ``max(e) sum(p |v - y|)``: nothing where one key has all the weight. e is the exponential's
    approximation and ``roundings`` of the largest score, as float32 rounds; the division adds its
    own to y.

    Args:
        qkv: float [tokens, 3 * heads * head_size], as the reference takes it.
        lengths: tokens of each sequence.
        heads: number of attention heads.
        scale: multiplies the scores.
        roundings: how many roundings of a score, each of half a unit in its last place.

    Returns:
        float64 [tokens, heads * head_size].
    """
    wide, start, parts = qkv.double(), 0, []
    y = attention(wide, lengths, heads, scale)
    for length in lengths:
        at = slice(start, start + length)
        q, k, v = wide[at].unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) * scale
        rounded = roundings * 2.0**-24 * (q.abs() @ k.abs().transpose(1, 2)) * scale
        wrong = rounded.amax(-1) if length else rounded.sum(-1)
        each = y[at].unflatten(1, (heads, -1)).transpose(0, 1)
        spread = torch.einsum(
            "hqk,hqkd->hqd", scores.softmax(-1), (v.unsqueeze(1) - each.unsqueeze(2)).abs()
        )
        # The second order too: a factor is exp(e), not 1 + e.
        wrong = torch.expm1(2 * wrong) / 2 + APPROXIMATION
        part = wrong.unsqueeze(-1) * spread + APPROXIMATION * each.abs()
        parts.append(part.transpose(0, 1).flatten(1))
        start = at.stop
    return torch.cat(parts)


def _seen_by_the_layer(x: Tensor, packed: PackedWeight) -> Tensor:
    """float64 [tokens, in]: the input after the layer's own quantization, if it has one."""
    spec = packed.spec.activations
    if spec is None:
        return x.double()
    if spec.scheme == "dynamic" and spec.dtype == "uint8":
        q, scale, zero_point = quantize_rows_asymmetric(x)
        return (q - zero_point.unsqueeze(1)).double() * scale.double().unsqueeze(1)
    if spec.scheme == "dynamic":
        q, scale = quantize_rows(x)
        return q.double() * scale.double().unsqueeze(1)
    static = quantize_static(x, spec.scale, spec.zero_point, *spec.range)
    return (static.double() - spec.zero_point) * spec.scale


def errors_of(actual: Tensor, oracle: Tensor, slack: Tensor | float = 0.0) -> Errors:
    """Measure ``actual`` against ``oracle``; both of one shape, any float types.

    Where the oracle is NaN or infinite the result must be the same, and counts as no error there;
    anything else that is not finite is an infinite error. Elsewhere only what exceeds ``slack``
    counts.
    """
    if actual.shape != oracle.shape:
        raise AssertionError(f"shape: expected {list(oracle.shape)}, got {list(actual.shape)}")
    if actual.numel() == 0:
        return Errors(0.0, 0.0, ())
    actual, oracle = actual.detach().double(), oracle.detach().double()
    same = (actual == oracle) | (actual.isnan() & oracle.isnan())
    error = (actual - oracle).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    error = torch.where(same, torch.zeros_like(error), (error - slack).clamp_min(0))
    worst = torch.unravel_index(error.argmax(), error.shape)
    return Errors(
        largest=float(error.max()),
        rms=float(error.square().mean().sqrt()),
        worst=tuple(int(i) for i in worst),
    )


def assert_close_to_oracle(
    actual: Tensor,
    oracle: Tensor,
    baseline: Tensor,
    *,
    multiple: float = MULTIPLE,
    slack: Tensor | float = 0.0,
    name: str = "output",
) -> Errors:
    """Raise unless ``actual`` is about as near to the oracle as dense PyTorch is.

    The largest and the RMS error may each be ``multiple`` times the baseline's, and never have to
    be below one unit in the last place of the largest output: the baseline may be exact by luck.

    Args:
        actual: the result to judge, any shape and float type.
        oracle: float64 of the same shape.
        baseline: what dense PyTorch computes in ``actual``'s precision.
        multiple: how many times the baseline's error is allowed.
        slack: what each element may be off by before its error counts, derived by the caller: of
            steps that the baseline does not take, or that may cost it nothing by luck.
        name: what is being judged, for the message.

    Returns:
        The measured errors of ``actual``.

    Raises:
        AssertionError: naming both errors, their bounds and the worst coordinate.
    """
    got, allowed = errors_of(actual, oracle, slack), errors_of(baseline, oracle)
    finite = oracle[torch.isfinite(oracle)]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    floor = torch.finfo(actual.dtype).eps * largest
    bound_largest = multiple * allowed.largest + floor
    bound_rms = multiple * allowed.rms + floor
    if got.largest <= bound_largest and got.rms <= bound_rms:
        return got
    at = "[" + ", ".join(map(str, got.worst)) + "]"
    raise AssertionError(
        f"{name}: max error {got.largest:.3e} (allowed {bound_largest:.3e}), RMS error "
        f"{got.rms:.3e} (allowed {bound_rms:.3e}); worst at {at}: expected "
        f"{float(oracle[got.worst]):.9g}, got {float(actual[got.worst]):.9g}. Dense "
        f"{str(baseline.dtype).removeprefix('torch.')} PyTorch errs by {allowed.largest:.3e}, "
        f"RMS {allowed.rms:.3e}"
    )
