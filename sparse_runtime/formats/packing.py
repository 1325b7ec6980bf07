"""Matrix to packed weight and named tensors to packed weight, whatever the structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..spec import LinearSpec
from .base import PackedWeight, check_tensor, check_weight
from .block import BlockWeight
from .dense import DenseWeight
from .nm import NMWeight
from .unstructured import UnstructuredWeight

FORMATS: dict[str, type[PackedWeight]] = {
    "dense": DenseWeight,
    "unstructured": UnstructuredWeight,
    "nm": NMWeight,
    "block": BlockWeight,
}


def pack(
    weight: Tensor,
    spec: LinearSpec,
    scales: Tensor | None = None,
    zero_points: Tensor | None = None,
) -> PackedWeight:
    """Pack a matrix [out, in] that already is in ``spec.values.torch_dtype``.

    ``pack(w, spec, ...).unpack()`` equals ``w``; a negative zero comes back as zero. Floats
    become integers only through :func:`cast_values`, and a matrix is made to fit a structure only
    through :func:`project`: packing itself never changes a value.

    Args:
        weight: [out, in]; int8 for int8 and int4 values.
        spec: the layer's description.
        scales: float32 [``spec.scale_count``] for integer values, else None.
        zero_points: int8 [``spec.scale_count``] where ``spec.values.zero_points``, else None.

    Raises:
        TypeError: the weight has another dtype.
        ValueError: shape, scales, zero points or values do not fit ``spec``, or are not finite.
    """
    weight = check_weight(weight.detach(), spec, scales)
    if (zero_points is not None) != spec.values.zero_points:
        raise ValueError(
            "zero_points: the description "
            + ("asks for them, got none" if spec.values.zero_points else "has none, got some")
        )
    if scales is not None:
        check_tensor("scales", scales, scales.dtype, (spec.scale_count,))
        scales = scales.detach().contiguous()
    packed = FORMATS[spec.structure.kind].pack(weight, spec, scales)
    if zero_points is not None:
        packed = replace(packed, zero_points=zero_points.detach().contiguous())
    packed.validate()
    return packed


def from_tensors(spec: LinearSpec, tensors: Mapping[str, Tensor]) -> PackedWeight:
    """Rebuild a packed weight from its named tensors, refusing what no packer writes."""
    return FORMATS[spec.structure.kind].from_tensors(spec, tensors)
