"""The reference candidate: plain PyTorch on the packed bytes, for any format on any device."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..formats import FORMATS, BlockWeight, NMWeight, PackedWeight, UnstructuredWeight
from ..kernels.block import reference as block
from ..kernels.dense import reference as dense
from ..kernels.linear import reference as linear
from ..kernels.nm import reference as nm
from ..kernels.unstructured import reference as unstructured
from ..spec import ActivationSpec, QuantizedAttention
from .types import Candidate, LinearRequest, PreparedLinear


def read_weight(packed: PackedWeight) -> Tensor:
    """Decode the stored values [out, in] with the kernels' own readers."""
    spec, int4 = packed.spec, packed.spec.values.dtype == "int4"
    if isinstance(packed, UnstructuredWeight):
        return unstructured.read_weight(packed.values, packed.bitmask, spec.shape, int4)
    if isinstance(packed, NMWeight):
        n, m = spec.structure.n, spec.structure.m
        return nm.read_weight(packed.values, packed.positions, spec.shape, n, m, int4)
    if isinstance(packed, BlockWeight):
        sides = (spec.structure.rows, spec.structure.cols)
        return block.read_weight(packed.values, packed.bitmask, spec.shape, sides, int4)
    return dense.read_weight(packed.values, spec.shape, int4)


def quantize_input(x: Tensor, spec: ActivationSpec) -> tuple[Tensor, int | Tensor, Tensor]:
    """Quantize [tokens, in] as ``spec`` says: (integers, zero point(s), float32 scales)."""
    if spec.scheme == "dynamic" and spec.dtype == "uint8":
        q, scale, zero_points = linear.quantize_rows_asymmetric(x)
        return q, zero_points, scale
    if spec.scheme == "dynamic":
        quantize = linear.quantize_rows if spec.narrow_range else linear.quantize_rows_full_range
        q, scale = quantize(x)
        return q, 0, scale
    q = linear.quantize_static(x, spec.scale, spec.zero_point, *spec.range)
    return q, spec.zero_point, torch.tensor([spec.scale], device=x.device)


def quantizer(spec: ActivationSpec | None) -> linear.Quantizer | None:
    """A static description as the kernels take it."""
    return None if spec is None else linear.Quantizer(spec.scale, spec.zero_point, *spec.range)


def quantizers_of(attention: QuantizedAttention | None) -> dict[str, linear.Quantizer] | None:
    """The quantizers of an attention as the kernels take them, by name."""
    if attention is None:
        return None
    parts = attention.parts().items()
    return {name: found for name, spec in parts if (found := quantizer(spec)) is not None}


class ReferenceLinear(PreparedLinear):
    """Reads the packed bytes at every call: slow, obvious, exact."""

    candidate = "reference"
    bias: Tensor | None

    def __init__(self, request: LinearRequest) -> None:
        super().__init__(request.name, request.in_features, request.out_features)
        self._specs = [weight.packed.spec for weight in request.weights]
        self.register_buffer("bias", request.stacked_bias(), persistent=False)
        for i, weight in enumerate(request.weights):
            for name, tensor in weight.packed.to(request.device).tensors().items():
                self.register_buffer(f"part{i}_{name}", tensor, persistent=False)

    def _parts(self) -> list[PackedWeight]:
        parts = []
        for i, spec in enumerate(self._specs):
            form = FORMATS[spec.structure.kind]
            tensors = {name: getattr(self, f"part{i}_{name}") for name in form.tensor_names(spec)}
            parts.append(form(spec=spec, **tensors))
        return parts

    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        self.check(x, activation, residual)
        parts = self._parts()
        weights = [read_weight(part) for part in parts]
        activations = self._specs[0].activations
        if activations is None:
            if any(part.scales is not None for part in parts):
                dtype = torch.promote_types(x.dtype, torch.float32)
                weights = [p.scaled(w, dtype) for p, w in zip(parts, weights, strict=True)]
            return linear.float_linear(x, torch.cat(weights), self.bias, activation, residual)
        quantized = quantize_input(x, activations)
        ys, start = [], 0
        for part, weight in zip(parts, weights, strict=True):
            at = slice(start, start + len(weight))
            scales, zero_points = part.scale_columns()
            y = linear.integer_linear(
                *quantized,
                weight,
                scales,
                None if self.bias is None else self.bias[at],
                activation,
                None if residual is None else residual[:, at],
                weight_zero_point=None if part.zero_points is None else zero_points,
                group_cols=part.spec.values.group_cols,
                outputs=quantizer(part.spec.outputs),
            )
            ys.append(y)
            start = at.stop
        return torch.cat(ys, dim=1).to(x.dtype)


class ReferenceCandidate(Candidate):
    """Takes every layer."""

    name: ClassVar[str] = "reference"
    backend: ClassVar[str] = "reference"

    def rejects(self, request: LinearRequest) -> str | None:
        return None

    def note(self, request: LinearRequest, *, measure: bool = False) -> str:
        return "plain PyTorch that decodes the packed bytes at every call"

    def prepare(self, request: LinearRequest) -> PreparedLinear:
        return ReferenceLinear(request)
