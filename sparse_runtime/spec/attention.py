"""How the two products of self-attention are quantized."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from .activations import ActivationSpec
from .text import require_keys


@dataclass(frozen=True)
class QuantizedAttention:
    """Self-attention whose products take integers, as quantization-aware training left it.

    With ``x^`` the value that a static quantizer of x gives back, ``(q - zero_point) * scale``:
    ``scores = query^ key^T`` [requantized], times 1 / sqrt(head_size), then bias and softmax in
    float32; ``context = probabilities^ value^`` [requantized]. A product of two quantized sides is
    an exact sum of integers, dequantized in float32, left to right: ``float(sum) * left scale *
    right scale``. The form of SparseML's QAT checkpoints (QATMatMul) and of ONNX models with
    QuantizeLinear around their attention.

    Attributes:
        query: of the left side of the scores; static, or None where it stays float.
        key: of their right side.
        probabilities: of the left side of the context, behind the softmax.
        value: of its right side.
        scores: of the first product's result, before it is scaled.
        context: of the second product's result.
    """

    query: ActivationSpec | None = None
    key: ActivationSpec | None = None
    probabilities: ActivationSpec | None = None
    value: ActivationSpec | None = None
    scores: ActivationSpec | None = None
    context: ActivationSpec | None = None

    def __post_init__(self) -> None:
        for name, spec in self.parts().items():
            if spec.scheme != "static":
                raise ValueError(
                    f"attention {name}: expected a static quantizer, got {spec.scheme!r}"
                )
        if not self.parts():
            raise ValueError(
                "attention: expected at least one quantizer, got none; leave the layer out"
            )

    def parts(self) -> dict[str, ActivationSpec]:
        """The quantizers that are there, by attribute."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: spec for name, spec in found.items() if spec is not None}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form written in config.json: every attribute, null for None."""
        parts = self.parts()
        return {
            field.name: parts[field.name].to_dict() if field.name in parts else None
            for field in fields(self)
        }

    @classmethod
    def from_dict(cls, data: Any) -> QuantizedAttention:
        """Read :meth:`to_dict`'s form; unknown, missing or mistyped entries raise ValueError."""
        require_keys(data, {field.name for field in fields(cls)}, "attention")
        return cls(
            **{
                name: None if entry is None else ActivationSpec.from_dict(entry, name)
                for name, entry in data.items()
            }
        )
