"""Float weights to stored values: rounding to a float type, or symmetric integers with scales."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import FLOAT_DTYPES, INTEGER_RANGES, ValueSpec
from .base import check_finite


def cast_values(weight: Tensor, values: ValueSpec) -> tuple[Tensor, Tensor | None]:
    """Bring a float weight [out, in] to the form :func:`pack` takes.

    Floats are rounded to nearest; a value that overflows fp16 is refused. Integers are symmetric,
    ``scale = max|w| / 127`` (int4: 7) over the rows that share the scale, rounded half to even;
    rows without a nonzero get scale 1. Zeros stay zeros.

    Returns:
        (weight in ``values.torch_dtype``, float32 scales [scale_count] or None)

    Raises:
        ValueError: the weight is not a finite 2-D float matrix, or overflows.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(
            f"weight: expected a 2-D float matrix, got {weight.dtype} {list(weight.shape)}"
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
    limit = INTEGER_RANGES[values.dtype][1]
    scales = weight_scales(weight, values, limit)
    rows = values.chunk_rows if values.granularity == "chunk" else 1
    per_row = scales.repeat_interleave(rows)[: weight.shape[0]].unsqueeze(1)
    quantized = torch.round(weight.float() / per_row).clamp_(-limit, limit)
    return quantized.to(torch.int8), scales


def weight_scales(weight: Tensor, values: ValueSpec, limit: int) -> Tensor:
    """float32 [scale_count]: the largest magnitude that shares a scale, over ``limit``."""
    row_max = weight.float().abs().amax(1)
    if values.granularity == "tensor":
        row_max = row_max.amax(0, keepdim=True)
    elif values.granularity == "chunk":
        tail = -row_max.shape[0] % values.chunk_rows
        row_max = torch.nn.functional.pad(row_max, (0, tail)).view(-1, values.chunk_rows).amax(1)
    # The smallest normal number keeps w / scale finite when max|w| is subnormal.
    scales = (row_max / limit).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(row_max == 0, torch.ones_like(scales), scales)
