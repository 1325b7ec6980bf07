"""Float weights to stored values: rounding to a float type, or symmetric integers with scales."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..spec import FLOAT_DTYPES, INTEGER_RANGES, ValueSpec
from .base import check_finite


def cast_values(weight: Tensor, values: ValueSpec) -> tuple[Tensor, Tensor | None]:
    """Bring a float weight [out, in] to the form :func:`pack` takes.

    Floats are rounded to nearest; a value that overflows fp16 is refused. Integers are symmetric,
    ``scale = max|w| / 127`` (int4: 7) over the weights that share the scale, rounded half to even;
    all zeros get scale 1. Zeros stay zeros.

    Returns:
        (weight in ``values.torch_dtype``, float32 scales [scale_count] or None)

    Raises:
        ValueError: the weight is not a finite 2-D float matrix, or overflows, or ``values`` has
            zero points, which only checkpoints bring.
    """
    if values.zero_points:
        raise ValueError("zero_points: quantizing is symmetric; pack integers that have them")
    if weight.ndim != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise ValueError(
            "weight: expected a 2-D float matrix of at least one element, got "
            f"{weight.dtype} {list(weight.shape)}"
        )
    check_finite(weight)
    if not values.is_integer:
        cast = weight.to(FLOAT_DTYPES[values.dtype])
        if not bool(torch.isfinite(cast).all()):
            raise ValueError(
                f"weight: largest magnitude {weight.abs().max().item():g} overflows "
                f"{values.dtype}; use bf16 or fp32"
            )
        return cast, None
    single = weight.float()
    if not bool(torch.isfinite(single).all()):
        raise ValueError(
            f"weight: largest magnitude {weight.abs().max().item():g} overflows the float32 that "
            f"{values.dtype} scales are in"
        )
    scales = symmetric_scales(single, values)
    return to_integers(single, scales, values).to(torch.int8), scales


def symmetric_scales(weight: Tensor, values: ValueSpec) -> Tensor:
    """``max|w| / 127`` (int4: 7) over the weights that share a scale; 1 where all are zero.

    Args:
        weight: float32 [out, in], finite.
        values: integers.

    Returns:
        float32 [``values.scale_count(out, in)``].
    """
    rows, cols = weight.shape
    # Maxima of [rows, groups]; only "group" has more than one in a row.
    length = min(values.group_cols or cols, cols)
    maxima = pad(weight.abs(), (0, -cols % length)).view(rows, -1, length).amax(2)
    if values.granularity == "tensor":
        largest = maxima.amax().view(1)
    elif values.granularity == "chunk":
        height = min(values.chunk_rows, rows)
        largest = pad(maxima.flatten(), (0, -rows % height)).view(-1, height).amax(1)
    else:
        largest = maxima.flatten()
    # The smallest normal number keeps w / scale finite when max|w| is subnormal.
    limit = INTEGER_RANGES[values.dtype][1]
    scales = (largest / limit).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(largest == 0, torch.ones_like(scales), scales)


def to_integers(weight: Tensor, scales: Tensor, values: ValueSpec) -> Tensor:
    """``clamp(round_half_even(w / scale), -127, 127)`` (int4: 7), zeros stay zeros.

    Args:
        weight: float32 [out, in].
        scales: float32 [``values.scale_count(out, in)``].
        values: integers.

    Returns:
        float32 [out, in] of whole numbers.
    """
    limit = INTEGER_RANGES[values.dtype][1]
    spread = values.spread(scales, weight.shape[0], weight.shape[1])
    return torch.round(weight / spread).clamp_(-limit, limit)
