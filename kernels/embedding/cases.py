"""What of embeddings is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..ahead_of_time import Case
from ..quantize.cases import TOKENS, empty_target


def _call(
    dtype: torch.dtype, tokens: int, features: int, scheme: str, tables: int, ids: torch.dtype
) -> None:
    from .embedding_triton import embed

    weight = torch.empty(features, dtype=dtype)
    embed(
        (torch.empty(tokens, dtype=ids),) * tables,
        (torch.empty(512, features, dtype=dtype),) * tables,
        weight,
        weight,
        1e-12,
        "layer_norm",
        empty_target(tokens, features, dtype, scheme),
        scheme,
    )


def compile_cases() -> Iterator[Case]:
    """The widths of models with three tables, other types and numbers of tables on one."""
    combinations = [(torch.bfloat16, n, "asymmetric", 3, torch.int64) for n in (384, 768, 1024)]
    combinations += [
        (torch.float16, 768, "symmetric", 2, torch.int32),
        (torch.float32, 768, "none", 3, torch.int64),
        (torch.float32, 768, "full_range", 1, torch.int64),
    ]
    for dtype, features, scheme, tables, ids in combinations:
        for tokens in TOKENS:
            name = (
                f"embed {str(dtype).removeprefix('torch.')} {tokens}x{features} {scheme}"
                f" {tables} tables"
            )
            yield Case(name, partial(_call, dtype, tokens, features, scheme, tables, ids))
