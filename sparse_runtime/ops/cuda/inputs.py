"""Quantizing a layer's input where nothing before it has."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.linear.operands import Quantized, Target
from ...spec import ActivationSpec
from .stacked import row_quantizer

_ROW_BYTES = 16
"""Rows start at multiples of this many bytes, which kernels load fastest."""


class InputQuantizer:
    """Quantizes rows as an ``ActivationSpec`` says, in one launch."""

    def __init__(self, spec: ActivationSpec, device: torch.device) -> None:
        from ...kernels.quantize.quantize_rows_triton import quantize_rows

        self._quantize_rows = quantize_rows
        self._how = row_quantizer(spec)
        self._is_static = self._how.scheme == "static"
        # Made once: a copy from the host would end the capture of a graph.
        self._scale = torch.tensor([self._how.scale], device=device)
        self._zero = torch.tensor([self._how.zero], dtype=torch.int32, device=device)

    def __call__(self, x: Tensor) -> Quantized:
        """Quantize float [tokens, in], features side by side."""
        tokens, features = x.shape
        stride = -(-features // _ROW_BYTES) * _ROW_BYTES
        q = torch.empty(tokens, stride, dtype=torch.int8, device=x.device)[:, :features]
        scale, zero = self._scale, self._zero if self._how.has_zero_points else None
        if not self._is_static:
            scale = torch.empty(tokens, device=x.device, dtype=torch.float32)
            zero = None if zero is None else torch.empty_like(scale, dtype=torch.int32)
        target = Target(None, 0, q=q, q_stride=stride, scale=scale, zero=zero)
        self._quantize_rows(x, target, self._how.scheme)
        return Quantized(q, stride, scale, zero, 0 if self._is_static else 1)
