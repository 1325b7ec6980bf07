"""How the inputs and outputs of a layer are quantized."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .text import require_keys

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
LARGEST_SCALE = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class ActivationSpec:
    """How a layer's input is quantized before the integer product.

    ``dynamic``: computed from each token itself, one scale per token: symmetric for int8, with a
    zero point per token for uint8, which uses the whole range where values lie to one side of 0,
    as they do behind GELU. Symmetric int8 comes in two forms. With ``narrow_range`` the largest
    magnitude m becomes 127 and -128 is not used: ``scale = m / 127``. Without it
    ``scale = m / 127.5`` and ``q = clamp(round_half_even(x / scale), -128, 127)``: the dynamic int8
    of compressed-tensors, and of torchao but for ties (kernels/linear/reference.py).
    ``static``: one ``scale`` and ``zero_point`` per tensor, fixed by calibration or QAT, int8 or
    uint8; ``q = clamp(round_half_even(x / scale) + zero_point)`` as in ONNX QuantizeLinear.
    """

    scheme: Literal["dynamic", "static"] = "dynamic"
    dtype: Literal["int8", "uint8"] = "int8"
    scale: float = 0.0
    zero_point: int = 0
    narrow_range: bool = True

    def __post_init__(self) -> None:
        if self.scheme not in ("dynamic", "static") or self.dtype not in ("int8", "uint8"):
            raise ValueError(
                f"activations {self.scheme!r} {self.dtype!r}: expected 'dynamic' or 'static', "
                "'int8' or 'uint8'"
            )
        if not self.narrow_range and (self.scheme, self.dtype) != ("dynamic", "int8"):
            raise ValueError(
                f"activations {self.scheme!r} {self.dtype!r}: narrow_range belongs to dynamic int8"
            )
        if self.scheme == "dynamic":
            if (self.scale, self.zero_point) != (0.0, 0):
                raise ValueError("dynamic activations carry no scale or zero point")
            return
        low, high = self.range
        # Computed with in float32, where a smaller scale would be 0 or lose digits.
        if not SMALLEST_SCALE <= self.scale <= LARGEST_SCALE:
            raise ValueError(
                f"activation scale {self.scale}: expected a finite number above 0, from "
                f"{SMALLEST_SCALE:.4g} to {LARGEST_SCALE:.4g} as normal float32"
            )
        if not low <= self.zero_point <= high:
            raise ValueError(f"activation zero_point {self.zero_point}: outside [{low}, {high}]")

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest quantized value of the type."""
        return (-128, 127) if self.dtype == "int8" else (0, 255)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form written in config.json (docs/formats/store.md)."""
        data: dict[str, Any] = {"scheme": self.scheme, "dtype": self.dtype}
        if self.scheme == "static":
            return data | {"scale": self.scale, "zero_point": self.zero_point}
        return data | ({"narrow_range": self.narrow_range} if self.dtype == "int8" else {})

    @classmethod
    def from_dict(cls, data: Any, what: str = "activations") -> ActivationSpec:
        """Read :meth:`to_dict`'s form; unknown, missing or mistyped entries raise ValueError.

        Args:
            data: parsed JSON.
            what: what messages call it.
        """
        static = isinstance(data, dict) and data.get("scheme") == "static"
        extra = {"scale", "zero_point"} if static else set()
        optional = frozenset() if static else frozenset({"narrow_range"})
        require_keys(data, {"scheme", "dtype"} | extra, what, optional)
        if not static:
            return _dynamic(data, what)
        if type(data["zero_point"]) is not int or type(data["scale"]) not in (int, float):
            raise ValueError(
                f"{what}: scale {data['scale']!r} and zero_point {data['zero_point']!r} are not "
                "a number and an integer"
            )
        try:
            scale = float(data["scale"])
        except OverflowError:
            scale = math.inf  # refused below, with every other scale that is not finite
        return cls("static", data["dtype"], scale, data["zero_point"])


def _dynamic(data: dict[str, Any], what: str) -> ActivationSpec:
    narrow_range = data.get("narrow_range", True)
    if type(narrow_range) is not bool:
        raise ValueError(f"{what}: narrow_range {narrow_range!r}: expected true or false")
    if "narrow_range" in data and data["dtype"] != "int8":
        raise ValueError(f"{what}: {data['dtype']!r} has no narrow_range, only dynamic int8 has")
    return ActivationSpec(data["scheme"], data["dtype"], narrow_range=narrow_range)


DYNAMIC_ACTIVATIONS: dict[str, ActivationSpec] = {
    "dynamic": ActivationSpec("dynamic", "uint8"),
    "symmetric": ActivationSpec("dynamic", "int8"),
}
"""What the strings of ``activations=`` arguments mean."""
