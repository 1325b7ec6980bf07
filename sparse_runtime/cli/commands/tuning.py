"""sparse-runtime tune"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Debug, Json, Packed
from ..output import quiet_transformers, show


def tune(
    packed: Packed,
    device: Annotated[str, typer.Option(help="The GPU to measure on.")] = "cuda",
    dtype: Annotated[
        str, typer.Option(help="Float type of the activations: float32, bfloat16 or float16.")
    ] = "float32",
    seconds: Annotated[
        float, typer.Option(min=1.0, help="Begin no measurement later; compiling counts.")
    ] = 300.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure which kernels run a packed model's layers fastest on this GPU, and keep the times.

    Models loaded from then on use them.
    """
    from ... import SparseModel
    from ... import tune as measure

    quiet_transformers()
    model = SparseModel.from_pretrained(packed, device=device, dtype=dtype)
    show(measure(model, seconds=seconds), as_json)
