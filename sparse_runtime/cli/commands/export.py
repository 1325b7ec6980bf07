"""sparse-runtime export"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from ..options import Debug, Json
from ..output import to_json


class Form(str, Enum):
    """What is written."""

    hugging_face = "hugging-face"
    compressed_tensors = "compressed-tensors"
    onnx = "onnx"
    onnx_dynamic = "onnx-dynamic"


def export(
    packed: Annotated[
        str, typer.Argument(metavar="PACKED", help="Packed model: a directory.", show_default=False)
    ],
    out: Annotated[str, typer.Argument(help="A new directory.", show_default=False)],
    form: Annotated[
        Form,
        typer.Option(
            help="hugging-face: plain floats, zeros in place. compressed-tensors: integers. onnx: "
            "a QDQ graph; onnx-dynamic: inputs quantized by the batch."
        ),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a packed model for other programs; what they have no word for is refused."""
    from ...store.directories import read_path

    for name, path in (("PACKED", packed), ("OUT", out)):
        read_path(name, path)
    if form is Form.hugging_face:
        from ...integrations.hugging_face import export_hugging_face

        export_hugging_face(packed, out)
    elif form is Form.compressed_tensors:
        from ...integrations.compressed_tensors import export_compressed_tensors

        export_compressed_tensors(packed, out)
    else:
        from ...integrations.onnx import export_onnx

        export_onnx(packed, out, "qdq" if form is Form.onnx else "dynamic")
    if as_json:
        print(to_json({"directory": out, "form": form.value}, indent=2))
    else:
        print(f"written to {out}")
