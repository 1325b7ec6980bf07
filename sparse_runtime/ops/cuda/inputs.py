"""Quantizing a layer's input where nothing before it has."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.linear.operands import Quantized, Target
from ...spec import ActivationSpec
from .stacked import row_quantizer


def quantize_input(x: Tensor, spec: ActivationSpec) -> Quantized:
    """Quantize float [tokens, in], features side by side, as ``spec`` says: one launch."""
    from ...kernels.quantize.quantize_rows_triton import quantize_rows

    tokens, features = x.shape
    how = row_quantizer(spec)
    static = how.scheme == "static"
    stride = -(-features // 16) * 16  # rows start at 16 bytes, as kernels load them fastest
    q = torch.empty(tokens, stride, dtype=torch.int8, device=x.device)[:, :features]
    rows = 1 if static else tokens
    scale = torch.empty(rows, device=x.device, dtype=torch.float32)
    zero = torch.empty(rows, device=x.device, dtype=torch.int32) if how.has_zero_points else None
    if static:
        # Filled by a kernel: a copy from the host would stop a capture.
        scale.fill_(how.scale)
        if zero is not None:
            zero.fill_(how.zero)
    target = Target(None, 0, q=q, q_stride=stride, scale=scale, zero=zero)
    quantize_rows(x, target, how.scheme)
    return Quantized(q, stride, scale, zero, 0 if static else 1)
