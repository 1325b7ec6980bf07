"""What a quantized linear layer is, as training or a one-shot solver leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..formats.quantize import to_integers
from ..spec import ActivationSpec, LinearSpec, Structure, ValueSpec


@dataclass(frozen=True, eq=False)
class LinearQuantization:
    """The quantization of one layer, beside a float weight that is exactly integers x scales.

    Attributes:
        values: "int8" or "int4" and which weights share a scale; symmetric.
        scales: float32 [``values.scale_count(out, in)``].
        activations: how the layer's input is quantized; None multiplies in floats.
        outputs: static, or None: how the output is quantized again; its input is static then.
    """

    values: ValueSpec
    scales: Tensor
    activations: ActivationSpec | None = None
    outputs: ActivationSpec | None = None

    def integers(self, name: str, weight: Tensor) -> Tensor:
        """The weight's integers.

        Args:
            name: of the weight, for errors.
            weight: float32 [out, in].

        Returns:
            int8 [out, in].

        Raises:
            ValueError: the weight is not integers x scales to the last bit, the scales are not
                this weight's, or the parts exclude each other.
        """
        self._check(name, weight)
        scales = self.scales.to(weight.device)
        q = to_integers(weight, scales, self.values)
        wrong = q * self.values.spread(scales, weight.shape[0], weight.shape[1]) != weight
        if bool(wrong.any()):
            row, col = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"{name}: expected {self.values.dtype} integers times their scales, got "
                f"{weight[row, col].item():g} at [{row}, {col}], which is none; write the weight "
                "that the solver or the fake quantization gives, and not the one that was trained"
            )
        return q.to(torch.int8)

    def _check(self, name: str, weight: Tensor) -> None:
        if weight.dtype != torch.float32 or weight.ndim != 2:
            raise ValueError(
                f"{name}: expected a float32 matrix, which holds integers x scales exactly, got "
                f"{weight.dtype} {list(weight.shape)}"
            )
        shape = (weight.shape[0], weight.shape[1])
        try:
            if not self.values.is_integer or self.values.zero_points:
                raise ValueError(f"expected symmetric int8 or int4, got {self.values}")
            LinearSpec(shape, Structure("dense"), self.values, self.activations, self.outputs)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        count = self.values.scale_count(*shape)
        fits = self.scales.shape == (count,) and self.scales.dtype == torch.float32
        if not fits or not bool((torch.isfinite(self.scales) & (self.scales > 0)).all()):
            raise ValueError(
                f"{name}: expected {count} float32 scales above 0, got {self.scales.dtype} "
                f"{list(self.scales.shape)} from {float(self.scales.min()):g}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form in the metadata of quantization.safetensors (docs/checkpoints.md)."""
        return {
            "values": self.values.dtype,
            "scales": self.values.scales,
            "activations": None if self.activations is None else self.activations.to_dict(),
            "outputs": None if self.outputs is None else self.outputs.to_dict(),
        }
