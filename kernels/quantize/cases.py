"""What of row quantization is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..ahead_of_time import Case
from ..linear.operands import SCHEMES, Target

FEATURES = (384, 768, 1024, 3072, 4096)
"""Widths of MiniLM, base and large, and of the middle of their feed-forward layers."""

TOKENS = (128, 4096)
"""One row a program, and several."""

_LONG = 16384


def empty_target(tokens: int, features: int, dtype: torch.dtype | None, scheme: str) -> Target:
    """A target for ``scheme`` whose contents do not matter, with floats of ``dtype`` if any."""
    dynamic = scheme not in ("none", "static")
    return Target(
        floats=None if dtype is None else torch.empty(tokens, features, dtype=dtype),
        floats_stride=features,
        q=None if scheme == "none" else torch.empty(tokens, features, dtype=torch.int8),
        q_stride=features,
        scale=torch.empty(tokens if dynamic else 1),
        zero=torch.empty(tokens, dtype=torch.int32) if scheme == "asymmetric" else None,
    )


def _call(dtype: torch.dtype, tokens: int, features: int, scheme: str) -> None:
    from .quantize_rows_triton import quantize_rows

    x = torch.empty(tokens, features, dtype=dtype)
    quantize_rows(x, empty_target(tokens, features, None, scheme), scheme)


def compile_cases() -> Iterator[Case]:
    """Every width with one scheme, every scheme with one width, in the types of models."""
    combinations = [(torch.bfloat16, features, "asymmetric") for features in (*FEATURES, _LONG)]
    combinations += [
        (dtype, features, scheme)
        for dtype in (torch.float16, torch.float32)
        for features in (768, _LONG)
        for scheme in SCHEMES
        if scheme != "none"
    ]
    for dtype, features, scheme in combinations:
        for tokens in TOKENS if features != _LONG else TOKENS[:1]:
            kind = str(dtype).removeprefix("torch.")
            name = f"quantize_rows {kind} {tokens}x{features} {scheme}"
            yield Case(name, partial(_call, dtype, tokens, features, scheme))
