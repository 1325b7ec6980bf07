"""What one compressed linear layer is: a logical shape, a structure, a value type, activations.

A weight is *structure x values* (docs/formats): the structure says which positions may be nonzero,
the values say how the kept numbers are written. The two axes are independent, so there is one
class per axis and never one class per combination.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch

StructureKind = Literal["dense", "unstructured", "nm", "block"]
Granularity = Literal["tensor", "row", "chunk"]

FLOAT_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
INTEGER_RANGES: dict[str, tuple[int, int]] = {"int8": (-128, 127), "int4": (-8, 7)}
VALUE_DTYPES: tuple[str, ...] = (*FLOAT_DTYPES, *INTEGER_RANGES)

# Bounds on what a hostile file can ask for; the largest encoder matrices are below 2**29.
MAX_ELEMENTS = 2**31
MAX_BLOCK = 4096

# One spelling a number: no leading zeros, and ASCII digits only, which \d is not.
_NUMBER = "(0|[1-9][0-9]{0,7})"
_NM = re.compile(f"{_NUMBER}:{_NUMBER}")
_BLOCK = re.compile(f"block:{_NUMBER}x{_NUMBER}")
_CHUNK = re.compile(f"chunk:{_NUMBER}")


def _require_keys(data: Any, expected: set[str], what: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{what}: expected a JSON object, got {type(data).__name__}")
    if set(data) != expected:
        missing, unknown = sorted(expected - set(data)), sorted(set(data) - expected)
        raise ValueError(f"{what}: missing keys {missing}, unknown keys {unknown}")


@dataclass(frozen=True)
class Structure:
    """Which positions of a weight may be nonzero. Build it with :meth:`parse`.

    Attributes:
        kind: "dense", "unstructured", "nm" or "block".
        n: N:M only, values kept in each group of ``m`` consecutive inputs, 1 <= n < m <= 16.
        m: N:M only, the group's length along the inputs.
        rows: block only, outputs in one block.
        cols: block only, inputs in one block.
    """

    kind: StructureKind
    n: int = 0
    m: int = 0
    rows: int = 0
    cols: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("dense", "unstructured", "nm", "block"):
            raise ValueError(
                f"structure {self.kind!r}: expected 'dense', 'unstructured', 'nm' or 'block'"
            )
        if (self.kind != "nm" and (self.n or self.m)) or (
            self.kind != "block" and (self.rows or self.cols)
        ):
            raise ValueError(
                f"structure {self.kind!r}: n and m belong to 'nm', rows and cols to 'block'"
            )
        if self.kind == "nm" and not 1 <= self.n < self.m <= 16:
            raise ValueError(f"structure {self.n}:{self.m}: expected 1 <= N < M <= 16")
        sides = (self.rows, self.cols)
        if self.kind == "block" and not all(1 <= side <= MAX_BLOCK for side in sides):
            raise ValueError(f"structure {self}: a block's sides lie from 1 to {MAX_BLOCK}")

    @classmethod
    def parse(cls, text: str) -> Structure:
        """Read "dense", "unstructured", "N:M" or "block:RxC" (R outputs by C inputs).

        Raises:
            ValueError: for any other text, naming the accepted forms.
        """
        if text == "dense":
            return cls("dense")
        if text == "unstructured":
            return cls("unstructured")
        if match := _NM.fullmatch(text):
            return cls("nm", n=int(match[1]), m=int(match[2]))
        if match := _BLOCK.fullmatch(text):
            return cls("block", rows=int(match[1]), cols=int(match[2]))
        raise ValueError(
            f"structure {text!r}: expected 'dense', 'unstructured', 'N:M' (such as '2:4') or "
            "'block:RxC' (R outputs by C inputs, such as 'block:4x1')"
        )

    def __str__(self) -> str:
        if self.kind == "nm":
            return f"{self.n}:{self.m}"
        if self.kind == "block":
            return f"block:{self.rows}x{self.cols}"
        return self.kind


@dataclass(frozen=True)
class ValueSpec:
    """How the kept numbers are written.

    Attributes:
        dtype: "fp32", "bf16", "fp16", "int8" or "int4" (two per byte, computed as int8).
        granularity: integers only, how many rows (outputs) share one float32 scale: all of them
            ("tensor"), one ("row"), or ``chunk_rows`` consecutive ones ("chunk"). Floats have no
            scales; whatever is given, theirs reads "row".
        chunk_rows: "chunk" only; the last chunk may be shorter.
    """

    dtype: str
    granularity: Granularity = "row"
    chunk_rows: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in VALUE_DTYPES:
            raise ValueError(f"values {self.dtype!r}: expected one of {', '.join(VALUE_DTYPES)}")
        if self.granularity not in ("tensor", "row", "chunk"):
            raise ValueError(f"scales {self.granularity!r}: expected 'tensor', 'row' or 'chunk:R'")
        if (self.granularity == "chunk") != (self.chunk_rows >= 1):
            raise ValueError(
                f"scales {self.granularity!r} with chunk_rows={self.chunk_rows}: chunk_rows is at "
                "least 1 for 'chunk' and 0 otherwise"
            )
        if not self.is_integer:
            # Equal descriptions compare equal, whatever scales were named for values without any.
            object.__setattr__(self, "granularity", "row")
            object.__setattr__(self, "chunk_rows", 0)

    @classmethod
    def parse(cls, dtype: str, scales: str = "row") -> ValueSpec:
        """Read a value string and a scale string ("tensor", "row" or "chunk:R")."""
        if match := _CHUNK.fullmatch(scales):
            return cls(dtype, "chunk", int(match[1]))
        return cls(dtype, scales)  # type: ignore[arg-type]  # __post_init__ checks the text

    @property
    def is_integer(self) -> bool:
        """Whether the values are integers with scales."""
        return self.dtype in INTEGER_RANGES

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of unpacked values; int4 unpacks to torch.int8."""
        return FLOAT_DTYPES.get(self.dtype, torch.int8)

    @property
    def bits(self) -> int:
        """Bits of one stored value."""
        return {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4}[self.dtype]

    @property
    def scales(self) -> str:
        """The scale string that :meth:`parse` reads."""
        return f"chunk:{self.chunk_rows}" if self.granularity == "chunk" else self.granularity

    def scale_count(self, rows: int) -> int:
        """Number of float32 scales a weight of ``rows`` outputs carries (0 for floats)."""
        if not self.is_integer:
            return 0
        if self.granularity == "tensor":
            return 1
        return rows if self.granularity == "row" else -(-rows // self.chunk_rows)


@dataclass(frozen=True)
class ActivationSpec:
    """How a layer's input is quantized before the integer product.

    ``dynamic``: computed from each token itself, one scale per token: symmetric for int8, with a
    zero point per token for uint8, which uses the whole range where values lie to one side of 0,
    as they do behind GELU.
    ``static``: one ``scale`` and ``zero_point`` per tensor, fixed by calibration or QAT, int8 or
    uint8; ``q = clamp(round_half_even(x / scale) + zero_point)`` as in ONNX QuantizeLinear.
    """

    scheme: Literal["dynamic", "static"] = "dynamic"
    dtype: Literal["int8", "uint8"] = "int8"
    scale: float = 0.0
    zero_point: int = 0

    def __post_init__(self) -> None:
        if self.scheme not in ("dynamic", "static") or self.dtype not in ("int8", "uint8"):
            raise ValueError(
                f"activations {self.scheme!r} {self.dtype!r}: expected 'dynamic' or 'static', "
                "'int8' or 'uint8'"
            )
        if self.scheme == "dynamic":
            if (self.scale, self.zero_point) != (0.0, 0):
                raise ValueError("dynamic activations carry no scale or zero point")
            return
        low, high = self.range
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"activation scale {self.scale}: expected a finite number above 0")
        if not low <= self.zero_point <= high:
            raise ValueError(f"activation zero_point {self.zero_point}: outside [{low}, {high}]")

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest quantized value."""
        return (-128, 127) if self.dtype == "int8" else (0, 255)


DYNAMIC_ACTIVATIONS: dict[str, ActivationSpec] = {
    "dynamic": ActivationSpec("dynamic", "uint8"),
    "symmetric": ActivationSpec("dynamic", "int8"),
}
"""What the strings of ``activations=`` arguments mean."""


@dataclass(frozen=True)
class LinearSpec:
    """One compressed linear layer.

    Attributes:
        shape: (out_features, in_features) of the logical weight, as in ``nn.Linear.weight``.
        structure: which positions may be nonzero.
        values: how the kept numbers are written.
        activations: how the input is quantized; None multiplies the dequantized weight in floats.
    """

    shape: tuple[int, int]
    structure: Structure
    values: ValueSpec
    activations: ActivationSpec | None = None

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

    def to_dict(self) -> dict[str, Any]:
        """The JSON form written in config.json (docs/formats/store.md)."""
        data: dict[str, Any] = {
            "shape": list(self.shape),
            "structure": str(self.structure),
            "values": self.values.dtype,
            "scales": self.values.scales if self.values.is_integer else None,
            "activations": None,
        }
        if self.activations is not None:
            act = self.activations
            data["activations"] = {"scheme": act.scheme, "dtype": act.dtype}
            if act.scheme == "static":
                data["activations"] |= {"scale": act.scale, "zero_point": act.zero_point}
        return data

    @classmethod
    def from_dict(cls, data: Any) -> LinearSpec:
        """Read :meth:`to_dict`'s form; unknown, missing or mistyped entries raise ValueError."""
        _require_keys(data, {"shape", "structure", "values", "scales", "activations"}, "layer")
        shape = data["shape"]
        if not (isinstance(shape, list) and all(type(size) is int for size in shape)):
            raise ValueError(f"shape {shape!r}: expected a list of two integers")
        for key in ("structure", "values"):
            if not isinstance(data[key], str):
                raise ValueError(f"{key} {data[key]!r}: expected a string")
        has_scales = ValueSpec(data["values"]).is_integer
        if (data["scales"] is not None) != has_scales:
            raise ValueError(
                f"scales {data['scales']!r}: {data['values']} values "
                + ("have them, got none" if has_scales else "have none")
            )
        if not isinstance(data["scales"], (str, type(None))):
            raise ValueError(f"scales {data['scales']!r}: expected a string")
        return cls(
            shape=tuple(shape),
            structure=Structure.parse(data["structure"]),
            values=ValueSpec.parse(data["values"], data["scales"] or "row"),
            activations=_activations_from_dict(data["activations"]),
        )


def _activations_from_dict(data: Any) -> ActivationSpec | None:
    if data is None:
        return None
    static = isinstance(data, dict) and data.get("scheme") == "static"
    extra = {"scale", "zero_point"} if static else set()
    _require_keys(data, {"scheme", "dtype"} | extra, "activations")
    if not static:
        return ActivationSpec(data["scheme"], data["dtype"])
    if type(data["zero_point"]) is not int or type(data["scale"]) not in (int, float):
        raise ValueError(
            f"activations: scale {data['scale']!r} and zero_point {data['zero_point']!r} are not "
            "a number and an integer"
        )
    try:
        scale = float(data["scale"])
    except OverflowError:
        scale = math.inf  # refused below, with every other scale that is not finite
    return ActivationSpec("static", data["dtype"], scale, data["zero_point"])
