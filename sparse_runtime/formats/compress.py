"""From a float matrix and plain strings to a packed weight: the one policy of every entry point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..spec import (
    DYNAMIC_ACTIVATIONS,
    VALUE_DTYPES,
    ActivationSpec,
    LinearSpec,
    Structure,
    ValueSpec,
)
from .base import PackedWeight, check_finite
from .detect import observe
from .packing import pack
from .project import parse_prune, project
from .quantize import cast_values


@dataclass(frozen=True)
class CompressionNote:
    """What compressing one matrix changed.

    Attributes:
        nonzeros: nonzero weights of the source.
        zeroed: how many of them were pruned away to fit the structure; 0 unless asked for.
        error: Frobenius norm of (source - packed) over that of the source, pruning and rounding
            together; 0 for an all-zero source.
    """

    nonzeros: int
    zeroed: int
    error: float


@dataclass(frozen=True)
class Compression:
    """How to compress matrices. Build it with :meth:`parse`.

    Attributes:
        structure: the structure to pack in, or None for the one that a matrix' zeros show.
        sparsity: part of the weights or blocks to prune, or None; N:M structures state their own.
        values: how the kept numbers are written.
        activations: how the layer's input is quantized, or None.
    """

    structure: Structure | None
    sparsity: float | None
    values: ValueSpec
    activations: ActivationSpec | None

    @classmethod
    def parse(
        cls,
        *,
        structure: str = "auto",
        values: str = "auto",
        scales: str = "row",
        activations: str = "auto",
        prune: str | None = None,
    ) -> Compression:
        """Read the strings, and refuse those that contradict each other.

        Args:
            structure: "auto" keeps what the zeros show; "dense", "unstructured" and "block:RxC"
                hold any matrix; "N:M" prunes by magnitude what does not fit.
            values: "auto" is int8; or "fp32", "bf16", "fp16", "int8", "int4".
            scales: "row", "tensor" or "chunk:R", for integer values.
            activations: "auto" is "dynamic" (uint8, a scale and a zero point per token) for
                integer values and "none" for floats; "symmetric" is int8, a scale per token.
            prune: "N:M", "unstructured@SPARSITY" or "block:RxC@SPARSITY": prune by magnitude to
                this structure, which an explicit ``structure`` must name too.

        Raises:
            TypeError: an argument that is no string.
            ValueError: a string that is none of these, or two that exclude each other.
        """
        _check_string("structure", structure, "'2:4'")
        _check_string("values", values, "'int8'")
        _check_string("scales", scales, "'row'")
        _check_string("activations", activations, "'dynamic'")
        _check_string("prune", prune, "'unstructured@0.9'", optional=True)
        chosen = None if structure == "auto" else Structure.parse(structure)
        sparsity = None
        if prune is not None:
            pruned, sparsity = parse_prune(prune)
            if chosen not in (None, pruned):
                raise ValueError(
                    f"structure {structure!r} contradicts prune {prune!r}: leave one of them out"
                )
            chosen = pruned
        value_spec = _parse_values(values, scales)
        return cls(chosen, sparsity, value_spec, _parse_activations(activations, value_spec))

    def apply(self, weight: Tensor) -> tuple[PackedWeight, CompressionNote]:
        """Compress one matrix.

        Args:
            weight: float [out, in]; computed with in float32, whatever its type.

        Raises:
            ValueError: the weight is not a finite 2-D float matrix, or overflows the value type.
        """
        if weight.ndim != 2 or not weight.is_floating_point() or weight.numel() == 0:
            raise ValueError(
                "weight: expected a 2-D float matrix of at least one element, got "
                f"{weight.dtype} {list(weight.shape)}"
            )
        source = weight.detach().float()
        check_finite(source)
        structure = self.structure or observe(source, self.values).structure
        fitted = project(source, structure, self.sparsity)
        stored, scales = cast_values(fitted, self.values)
        shape = (source.shape[0], source.shape[1])
        spec = LinearSpec(shape, structure, self.values, self.activations)
        packed = pack(stored, spec, scales)
        return packed, _note(source, fitted, packed)


def compress(
    weight: Tensor,
    *,
    structure: str = "auto",
    values: str = "auto",
    scales: str = "row",
    activations: str = "auto",
    prune: str | None = None,
) -> tuple[PackedWeight, CompressionNote]:
    """Compress one float matrix [out, in]; strings as in :meth:`Compression.parse`."""
    policy = Compression.parse(
        structure=structure, values=values, scales=scales, activations=activations, prune=prune
    )
    return policy.apply(weight)


def _check_string(name: str, value: object, example: str, *, optional: bool = False) -> None:
    if not isinstance(value, str) and not (optional and value is None):
        raise TypeError(f"{name}: expected a string such as {example}, got {value!r}")


def _parse_values(values: str, scales: str) -> ValueSpec:
    if values != "auto" and values not in VALUE_DTYPES:
        raise ValueError(
            f"values {values!r}: expected 'auto', {', '.join(map(repr, VALUE_DTYPES))}"
        )
    spec = ValueSpec.parse("int8" if values == "auto" else values, scales)
    if not spec.is_integer and scales != "row":
        raise ValueError(f"scales {scales!r}: {values} values carry none; leave the argument out")
    return spec


def _parse_activations(activations: str, values: ValueSpec) -> ActivationSpec | None:
    if activations not in ("auto", "none", *DYNAMIC_ACTIVATIONS):
        raise ValueError(
            f"activations {activations!r}: expected 'auto', 'dynamic', 'symmetric' or 'none'"
        )
    if activations in DYNAMIC_ACTIVATIONS and not values.is_integer:
        raise ValueError(
            f"activations {activations!r}: needs int8 or int4 values, got {values.dtype}; use "
            "'none'"
        )
    if activations == "auto":
        activations = "dynamic" if values.is_integer else "none"
    return DYNAMIC_ACTIVATIONS.get(activations)


def _note(source: Tensor, fitted: Tensor, packed: PackedWeight) -> CompressionNote:
    nonzeros = int((source != 0).sum())
    norm = torch.linalg.vector_norm(source.double())
    lost = torch.linalg.vector_norm(source.double() - packed.dequantize(torch.float64))
    return CompressionNote(
        nonzeros=nonzeros,
        zeroed=nonzeros - int((fitted != 0).sum()),
        error=float(lost / norm) if norm > 0 else 0.0,
    )
