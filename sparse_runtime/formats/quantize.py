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
    limit = INTEGER_RANGES[values.dtype][1]
    single = weight.float()
    if not bool(torch.isfinite(single).all()):
        raise ValueError(
            f"weight: largest magnitude {weight.abs().max().item():g} overflows the float32 that "
            f"{values.dtype} scales are in"
        )
    group = _scale_of_row(weight.shape[0], values)
    row_max = single.abs().amax(1)
    largest = row_max.new_zeros(values.scale_count(weight.shape[0]))
    largest.scatter_reduce_(0, group.to(row_max.device), row_max, "amax")
    # The smallest normal number keeps w / scale finite when max|w| is subnormal.
    scales = (largest / limit).clamp_min(torch.finfo(torch.float32).tiny)
    scales = torch.where(largest == 0, torch.ones_like(scales), scales)
    quantized = torch.round(single / scales[group].unsqueeze(1)).clamp_(-limit, limit)
    return quantized.to(torch.int8), scales


def _scale_of_row(rows: int, values: ValueSpec) -> Tensor:
    """int64 [rows]: which scale each row uses."""
    if values.granularity == "tensor":
        return torch.zeros(rows, dtype=torch.int64)
    row = torch.arange(rows)
    return row // values.chunk_rows if values.granularity == "chunk" else row
