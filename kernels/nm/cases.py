"""What of the N:M family is compiled ahead of time (kernels/ahead_of_time.py)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..ahead_of_time import Case
from ..linear.tiles import Config
from ..unstructured.cases import DTYPES, configs_of, name_of, run
from .layout import pack

# Words of every width and values by themselves, in each dtype; 2:4 in every configuration.
PATTERNS = ((2, 4), (1, 2), (1, 4), (3, 4), (2, 8), (4, 8), (7, 8), (4, 16), (12, 16))


def compile_cases() -> Iterator[Case]:
    """2:4 with every dtype and configuration, the others with the first configuration."""
    for dtype in DTYPES:
        for n, m in PATTERNS:
            for config in configs_of(dtype) if (n, m) == (2, 4) else configs_of(dtype)[:1]:
                for inputs in (768, 776):
                    yield Case(
                        name=f"linear {n}:{m} {dtype} {name_of(config)}, {inputs} inputs",
                        call=partial(launch, dtype, n, m, config, inputs),
                        tensor_cores=dtype != "fp32",
                    )


def launch(dtype: str, n: int, m: int, config: Config, inputs: int) -> None:
    """Call the launcher for a matrix of zeros."""
    run(pack(torch.zeros(768, inputs, dtype=DTYPES[dtype]), n, m), dtype, config, inputs)
