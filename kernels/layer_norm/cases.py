"""What of norms is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..ahead_of_time import Case
from ..linear.operands import SCHEMES
from ..quantize.cases import FEATURES, TOKENS, empty_target
from ..quantize.row_blocks import MAX_COLUMNS


def _call(
    dtype: torch.dtype, tokens: int, features: int, scheme: str, kind: str, residual: bool
) -> None:
    from .layer_norm_triton import normalize

    x = torch.empty(tokens, features, dtype=dtype)
    weight = torch.empty(features, dtype=dtype)
    target = empty_target(tokens, features, dtype, scheme)
    normalize(x, x if residual else None, weight, weight, 1e-12, target, scheme, kind)


def compile_cases() -> Iterator[Case]:
    """Every width with one scheme, every scheme with one width, in the types of models."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    combinations = [
        (bf16, features, "asymmetric", "layer_norm", residual)
        for features in (*FEATURES, MAX_COLUMNS)
        for residual in (False, True)
    ]
    combinations += [(fp16, 768, scheme, "layer_norm", False) for scheme in SCHEMES]
    combinations += [(fp32, 768, scheme, "layer_norm", False) for scheme in SCHEMES]
    combinations += [(bf16, 512, "symmetric", "no_norm", False)]
    for dtype, features, scheme, kind, residual in combinations:
        for tokens in TOKENS:
            name = (
                f"{kind} {str(dtype).removeprefix('torch.')} {tokens}x{features} {scheme}"
                f"{' residual' if residual else ''}"
            )
            yield Case(name, partial(_call, dtype, tokens, features, scheme, kind, residual))
