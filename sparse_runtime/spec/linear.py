"""The description of one linear layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .activations import ActivationSpec
from .structure import Structure
from .text import require_keys
from .values import ValueSpec

# A bound on what a hostile file can ask for; the largest encoder matrices are below 2**29.
MAX_ELEMENTS = 2**31

_KEYS = {"shape", "structure", "values", "scales", "activations"}
_OPTIONAL_KEYS = frozenset({"zero_points", "outputs"})


@dataclass(frozen=True)
class LinearSpec:
    """One compressed linear layer.

    Attributes:
        shape: (out_features, in_features) of the logical weight, as in ``nn.Linear.weight``.
        structure: which positions may be nonzero.
        values: how the kept numbers are written.
        activations: how the input is quantized; None multiplies the dequantized weight in floats.
        outputs: static, or None: how the output is requantized, behind the bias and before the
            activation function and the residual, in float32:
            ``y' = (clamp(round_half_even(y / scale) + zero_point) - zero_point) * scale``.
            The output quantizers of QAT checkpoints (SparseML, Prune Once For All), whose inputs
            are static too.
    """

    shape: tuple[int, int]
    structure: Structure
    values: ValueSpec
    activations: ActivationSpec | None = None
    outputs: ActivationSpec | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 1 or math.prod(self.shape) > MAX_ELEMENTS:
            raise ValueError(
                f"shape {self.shape}: expected two sizes of at least 1 and at most {MAX_ELEMENTS} "
                "elements"
            )
        if self.activations is not None and not self.values.is_integer:
            raise ValueError(
                f"quantized activations need int8 or int4 weights, got {self.values.dtype}"
            )
        if self.values.zero_points and self.structure.kind != "dense":
            raise ValueError(
                f"zero_points: expected a dense structure, got {self.structure}: a position that "
                "is not stored is 0"
            )
        if self.outputs is None:
            return
        if self.outputs.scheme != "static":
            raise ValueError(f"outputs: expected a static quantizer, got {self.outputs.scheme!r}")
        if self.activations is None or self.activations.scheme != "static":
            raise ValueError(
                "outputs: expected static activations beside quantized outputs, got "
                + ("none" if self.activations is None else "dynamic ones")
            )

    @property
    def scale_count(self) -> int:
        """Number of float32 scales, and of zero points where there are any (0 for floats)."""
        return self.values.scale_count(*self.shape)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form written in config.json (docs/formats/store.md)."""
        act = self.activations
        data: dict[str, Any] = {
            "shape": list(self.shape),
            "structure": str(self.structure),
            "values": self.values.dtype,
            "scales": self.values.scales if self.values.is_integer else None,
            "activations": None if act is None else act.to_dict(),
        }
        if self.values.zero_points:
            data["zero_points"] = True
        if self.outputs is not None:
            data["outputs"] = self.outputs.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: Any) -> LinearSpec:
        """Read :meth:`to_dict`'s form; unknown, missing or mistyped entries raise ValueError."""
        require_keys(data, _KEYS, "layer", _OPTIONAL_KEYS)
        shape = data["shape"]
        if not (isinstance(shape, list) and all(type(size) is int for size in shape)):
            raise ValueError(f"shape {shape!r}: expected a list of two integers")
        for key in ("structure", "values"):
            if not isinstance(data[key], str):
                raise ValueError(f"{key} {data[key]!r}: expected a string")
        act, outputs = data["activations"], data.get("outputs")
        return cls(
            shape=tuple(shape),
            structure=Structure.parse(data["structure"]),
            values=_values_from_dict(data),
            activations=None if act is None else ActivationSpec.from_dict(act),
            outputs=None if outputs is None else ActivationSpec.from_dict(outputs, "outputs"),
        )


def _values_from_dict(data: dict[str, Any]) -> ValueSpec:
    scales, zero_points = data["scales"], data.get("zero_points", False)
    has_scales = ValueSpec(data["values"]).is_integer
    if (scales is not None) != has_scales:
        raise ValueError(
            f"scales {scales!r}: {data['values']} values "
            + ("have them, got none" if has_scales else "have none")
        )
    if not isinstance(scales, (str, type(None))):
        raise ValueError(f"scales {scales!r}: expected a string")
    if type(zero_points) is not bool:
        raise ValueError(f"zero_points {zero_points!r}: expected true or false")
    return ValueSpec.parse(data["values"], scales or "row", zero_points=zero_points)
