"""What of the padding kernels is compiled ahead of time (kernels/ahead_of_time.py)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..ahead_of_time import Case
from .operands import Padded, Stream
from .reference import POOLINGS

SHAPE = (4, 32)
FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INTEGERS = {"int32": torch.int32, "int64": torch.int64}

MASKS = (None, torch.bool, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)


def compile_cases() -> Iterator[Case]:
    """Every mask and kind of positions; every type of tokens, index and pooling."""
    for integers in INTEGERS:
        for mask in MASKS:
            masked = str(mask).removeprefix("torch.")
            for positions in ("columns", "given", "after padding"):
                name = f"padding {integers}, mask {masked}, positions {positions}"
                arguments = (integers, mask, positions)
                yield Case(f"scan {name}", partial(launch_scan, *arguments))
                yield Case(f"unpad {name}", partial(launch_unpad, *arguments))
    for dtype in FLOATS:
        for integers in INTEGERS:
            name = f"{dtype}, index {integers}"
            yield Case(f"repad {name}", partial(launch_repad, dtype, integers))
            yield Case(f"pool {name}", partial(launch_pool, dtype, integers))


def _batch(integers: str, mask: torch.dtype | None, positions: str) -> tuple[Padded, int | None]:
    ids = torch.empty(SHAPE, dtype=INTEGERS[integers])
    padded = Padded(
        ids,
        None if mask is None else torch.empty(SHAPE, dtype=mask),
        ids,
        ids if positions == "given" else None,
    )
    return padded, 1 if positions == "after padding" else None


def launch_scan(integers: str, mask: torch.dtype | None, positions: str) -> None:
    """Call the launcher for a batch of these types."""
    from .scan_triton import scan

    scan(*_batch(integers, mask, positions))


def launch_unpad(integers: str, mask: torch.dtype | None, positions: str) -> None:
    """Call the launcher, into int64 as into int32."""
    from .unpad_triton import unpad

    tokens, (padded, padding_id) = 100, _batch(integers, mask, positions)
    lengths = torch.empty(SHAPE[0], dtype=torch.int64)
    starts = torch.empty(SHAPE[0] + 1, dtype=torch.int32)
    for kind in INTEGERS.values():
        buffers: list[Tensor] = list(torch.empty(5, tokens, dtype=kind))
        unpad(padded, padding_id, lengths, tokens, Stream(*buffers, starts))


def launch_repad(dtype: str, integers: str) -> None:
    """Call the launcher for tokens and an index of these types."""
    from .repad_triton import repad

    repad(
        torch.empty(100, 768, dtype=FLOATS[dtype]), torch.empty(100, dtype=INTEGERS[integers]), 128
    )


def launch_pool(dtype: str, integers: str) -> None:
    """Call the launcher for tokens and columns of these types, in every mode."""
    from .pool_triton import pool

    starts = torch.empty(SHAPE[0] + 1, dtype=torch.int32)
    columns = torch.empty(100, dtype=INTEGERS[integers])
    pool(torch.empty(100, 768, dtype=FLOATS[dtype]), starts, columns, POOLINGS)
