"""The named encoder shapes of benchmarks/shapes: sizes of real models, without their weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "shapes"


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of one encoder.

    Attributes:
        name: name of the file.
        description: which model it is.
        layers: encoder layers.
        hidden: width of the residual stream.
        heads: attention heads.
        linears: the matrix products of one layer as they run, [out, in] each; queries, keys and
            values are one product.
        config: fields of the Hugging Face configuration, ``model_type`` among them.
    """

    name: str
    description: str
    layers: int
    hidden: int
    heads: int
    linears: dict[str, tuple[int, int]]
    config: dict[str, Any]


def shape_names() -> tuple[str, ...]:
    """Every name that :func:`load_shape` knows, smallest file name first."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def load_shape(name: str) -> EncoderShape:
    """Read one shape.

    Raises:
        ValueError: no shape has this name; lists those there are.
    """
    if name not in shape_names():
        raise ValueError(f"shape {name!r}: expected one of {', '.join(shape_names())}")
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    linears = {layer: (size[0], size[1]) for layer, size in data.pop("linears").items()}
    return EncoderShape(linears=linears, **data)
