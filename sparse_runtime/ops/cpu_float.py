"""Float layers on the CPU: PyTorch's own dense product on the weight expanded at load."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..kernels.linear import reference as linear
from .types import Candidate, LinearRequest, PreparedLinear


class CpuFloatLinear(PreparedLinear):
    """One dense float matrix."""

    candidate = "cpu.float"
    weight: Tensor
    bias: Tensor | None

    def __init__(self, request: LinearRequest) -> None:
        super().__init__(request.name, request.in_features, request.out_features)
        dtype = compute_dtype(request)
        weights = [w.packed.dequantize(dtype) for w in request.weights]
        bias = request.stacked_bias()
        self.register_buffer("weight", torch.cat(weights), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.to(dtype), persistent=False)

    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        self.check(x, activation, residual)
        return linear.float_linear(x, self.weight, self.bias, activation, residual)


def compute_dtype(request: LinearRequest) -> torch.dtype:
    """The wider of the activations' and the values' types; scales make integers float32."""
    dtype = request.dtype
    for weight in request.weights:
        values = weight.packed.spec.values
        dtype = torch.promote_types(
            dtype, torch.float32 if values.is_integer else values.torch_dtype
        )
    return dtype


class CpuFloatCandidate(Candidate):
    """Float values, or integer values whose inputs are not quantized."""

    name: ClassVar[str] = "cpu.float"
    backend: ClassVar[str] = "cpu"

    def rejects(self, request: LinearRequest) -> str | None:
        if request.device.type != "cpu":
            return f"runs on cpu, the layer is on {request.device.type}"
        if request.is_integer:
            return "the layer quantizes its input; this one multiplies floats"
        return None

    def note(self, request: LinearRequest, *, measure: bool = False) -> str:
        dtype = compute_dtype(request)
        specs = [w.packed.spec for w in request.weights]
        expanded = (
            sum(rows * cols for rows, cols in (spec.shape for spec in specs)) * dtype.itemsize
        )
        packed = sum(w.packed.size().total for w in request.weights)
        return (
            f"PyTorch's dense product; the weight is expanded at load to {str(dtype)[6:]} "
            f"({expanded:,} bytes, packed {packed:,})"
        )

    def prepare(self, request: LinearRequest) -> PreparedLinear:
        return CpuFloatLinear(request)
