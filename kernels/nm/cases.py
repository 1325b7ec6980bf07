"""What of the N:M family is compiled ahead of time (kernels/ahead_of_time.py)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product as pairs

import torch

from ..ahead_of_time import Case
from ..defaults import Key
from ..linear.tiles import Config
from ..unstructured.cases import DTYPES, every, name_of, run
from .layout import pack, word_of

PATTERNS = ((2, 4), (1, 2), (1, 4), (3, 4), (1, 8), (2, 8), (4, 8), (7, 8), (12, 16))


def compile_cases() -> Iterator[Case]:
    """Every kind of code, dtype and configuration."""
    for dtype in DTYPES:
        kinds: dict[Key, tuple[int, int]] = {}
        for n, m in PATTERNS:
            kinds.setdefault(code_of(n, m, DTYPES[dtype].itemsize), (n, m))
        for (n, m), (config, inputs) in pairs(kinds.values(), every(dtype)):
            yield Case(
                name=f"linear {n}:{m} {dtype} {name_of(config)}, {inputs} inputs",
                call=partial(launch, dtype, n, m, config, inputs),
                tensor_cores=dtype != "fp32",
            )


def code_of(n: int, m: int, element_size: int) -> Key:
    """What the code for a pattern depends on: the words that it reads, or the size of its groups.

    Groups without words multiply a number by N besides.
    """
    columns, slots = word_of(n, m, element_size)
    return (columns, slots) if columns else (m,)


def launch(dtype: str, n: int, m: int, config: Config, inputs: int) -> None:
    """Call the launcher for a matrix of zeros."""
    run(pack(torch.zeros(768, inputs, dtype=DTYPES[dtype]), n, m), dtype, config, inputs)
