"""What of the epilogue behind a library's product is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product as pairs

import torch

from ..ahead_of_time import Case
from .operands import Epilogue, Quantized, Target

TOKENS = 256
INPUTS = 768


def epilogue_cases() -> Iterator[Case]:
    """Sums of integers and products of floats, stored as tiles and as whole quantized rows."""
    for kind, (scheme, features) in pairs(
        ("int8", "bf16", "fp16", "fp32"),
        (("none", 768), ("static", 768), ("asymmetric", 3072), ("symmetric", 16384)),
    ):
        yield Case(
            name=f"epilogue behind a library's {kind} product, {features} outputs: {scheme}",
            call=partial(launch, kind, scheme, features),
        )


def launch(kind: str, scheme: str, features: int) -> None:
    """Call the launcher with everything that an epilogue may have."""
    from .epilogue_rows_triton import epilogue_rows

    stored = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind, torch.float32)
    acc = torch.zeros(TOKENS, features, dtype=torch.int32 if kind == "int8" else stored)
    x, ones = None, torch.ones(features)
    epilogue = Epilogue(bias=ones, residual=acc.to(stored), residual_stride=features)
    if kind == "int8":
        q = torch.zeros(TOKENS, INPUTS, dtype=torch.int8)
        zeros = torch.zeros(TOKENS, dtype=torch.int32)
        x = Quantized(q, INPUTS, torch.ones(TOKENS), zeros, 1)
        integers = torch.zeros(features, dtype=torch.int32)
        epilogue = epilogue._replace(weight_scale=ones, weight_sum=integers, weight_zero=integers)
    target = Target(floats=torch.empty(TOKENS, features, dtype=stored), floats_stride=features)
    if scheme != "none":
        rows = 1 if scheme == "static" else TOKENS
        target = target._replace(
            q=torch.empty(TOKENS, features, dtype=torch.int8),
            q_stride=features,
            scale=torch.ones(rows),
            zero=torch.zeros(rows, dtype=torch.int32),
        )
    epilogue_rows(acc, x, epilogue, "gelu", target, scheme)
