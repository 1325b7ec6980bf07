"""Which hand-written CUDA kernels this process has, and why no others."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from .cuda_interface import ORDERS
from .cuda_library import Library
from .cuda_nvrtc import RuntimeLibrary

BUILT = Path(__file__).parents[1] / "libsparse_runtime_cuda.so"
"""Where setup.py puts the library."""

WITHOUT_VARIABLE = "SPARSE_RUNTIME_WITHOUT"
"""Environment variable: orders of weights (``cuda_interface.ORDERS``), separated by commas, whose
kernels are not to be run."""

HOW_TO_BUILD = "install again with nvcc on PATH and SPARSE_RUNTIME_CUDA=1"


class Loaded(NamedTuple):
    """What :func:`load` found.

    Attributes:
        library: None where there is none.
        reason: why there is none; None where there is.
    """

    library: Library | None
    reason: str | None


@cache
def load() -> Loaded:
    """The library that was built with the package; else its kernels, as NVRTC compiles them."""
    try:
        if BUILT.exists():
            return Loaded(Library(BUILT), None)
        missing = f"{BUILT.name} was not built"
    except OSError as error:
        missing = str(error)
    try:
        library = RuntimeLibrary()
    except (OSError, RuntimeError) as error:
        return Loaded(None, f"{missing} ({HOW_TO_BUILD}); {error}")
    library.source = f"{library.source}, because {missing}"
    return Loaded(library, None)


def left_out(order: str) -> str | None:
    """Why the environment keeps the kernels of an order from running, or None.

    Raises:
        ValueError: the variable names an order that there is not.
    """
    said = os.environ.get(WITHOUT_VARIABLE, "")
    names = [name.strip() for name in said.split(",") if name.strip()]
    unknown = [name for name in names if name not in ORDERS]
    if unknown:
        raise ValueError(
            f"{WITHOUT_VARIABLE}={said}: expected names out of {', '.join(ORDERS)}, separated by "
            f"commas, got {unknown[0]!r}; correct it or unset the variable"
        )
    return f"{WITHOUT_VARIABLE}={said} leaves it out" if order in names else None


def not_launched() -> str | None:
    """Why no kernel of the library can be launched here, or None."""
    library, reason = load()
    if library is None:
        return reason
    return None if library.launches_on_cpu or torch.cuda.is_available() else "there is no GPU"
