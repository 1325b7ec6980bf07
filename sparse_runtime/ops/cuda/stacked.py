"""What layers that run as one hold on the device, whichever kernel multiplies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...formats import PackedWeight
from ...kernels.linear.operands import UINT8_OFFSET, Epilogue
from ...spec import ActivationSpec, Structure
from ..types import LinearRequest
from .problem import Problem, problem_of


class StackedLayers(NamedTuple):
    """Layers that read the same input, one below the other.

    Attributes:
        matrix: int8 (quantized inputs) or the activations' float type [all outputs, in].
        epilogue: what follows the product, but for the residual.
        structure: of all of them; "unstructured" where they differ.
        problem: the kind of product.
    """

    matrix: Tensor
    epilogue: Epilogue
    structure: Structure
    problem: Problem


def stack_layers(request: LinearRequest) -> StackedLayers:
    """Decode the layers' weights on their device, and what follows their products."""
    parts = [weight.packed.to(request.device) for weight in request.weights]
    structures = {part.spec.structure for part in parts}
    structure = structures.pop() if len(structures) == 1 else Structure("unstructured")
    matrix = _matrix(request, parts)
    epilogue = _epilogue(request, parts, matrix)
    results = request.results
    dynamic = results is not None and row_quantizer(results).scheme != "static"
    problem = problem_of(matrix, structure, dynamic=dynamic)
    return StackedLayers(matrix, epilogue, structure, problem)


def _matrix(request: LinearRequest, parts: list[PackedWeight]) -> Tensor:
    if request.is_integer:
        return torch.cat([part.unpack() for part in parts]).contiguous()
    # Scales are applied in float32, and the result is rounded once.
    weights = [part.dequantize(torch.float32).to(request.dtype) for part in parts]
    return torch.cat(weights).contiguous()


def _epilogue(request: LinearRequest, parts: list[PackedWeight], matrix: Tensor) -> Epilogue:
    bias = request.stacked_bias()
    if not request.is_integer:
        return Epilogue(bias=bias)
    sums = matrix.sum(1, dtype=torch.int32)
    zeros = None
    if any(part.zero_points is not None for part in parts):
        zeros = torch.cat([part.row_zero_points() for part in parts]).contiguous()
        sums = sums - zeros * matrix.shape[1]
    epilogue = Epilogue(
        weight_scale=torch.cat([part.row_scales() for part in parts]).float().contiguous(),
        weight_sum=sums if quantizer_of_inputs(request).has_zero_points else None,
        weight_zero=zeros,
        bias=bias,
    )
    outputs = request.stacked_outputs()
    if outputs is not None:
        scale, zero, low, high = outputs
        epilogue = epilogue._replace(out_scale=scale, out_zero=zero, out_low=low, out_high=high)
    return epilogue


class RowQuantizer(NamedTuple):
    """How kernels quantize rows for an ``ActivationSpec``.

    Attributes:
        scheme: one of ``SCHEMES`` (kernels/linear/operands.py).
        scale: of a static scheme, else 0.
        zero: the stored value of 0 of a static scheme, else 0.
        has_zero_points: whether rows have zero points: of their own, or one for all.
    """

    scheme: str
    scale: float
    zero: int
    has_zero_points: bool


def row_quantizer(spec: ActivationSpec) -> RowQuantizer:
    """``spec`` in the kernels' terms: everything is stored as int8."""
    if spec.scheme == "static":
        zero = spec.zero_point - (UINT8_OFFSET if spec.dtype == "uint8" else 0)
        return RowQuantizer("static", spec.scale, zero, zero != 0)
    if spec.dtype == "uint8":
        return RowQuantizer("asymmetric", 0.0, 0, True)
    scheme = "symmetric" if spec.narrow_range else "full_range"
    return RowQuantizer(scheme, 0.0, 0, False)


def quantizer_of_inputs(request: LinearRequest) -> RowQuantizer:
    """How the layers' common input is quantized; they must quantize it."""
    activations = request.weights[0].packed.spec.activations
    if activations is None:
        raise ValueError(f"{request.name}: its input is not quantized")
    return row_quantizer(activations)
