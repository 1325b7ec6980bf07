"""The one door to the C++ extension: whether it is there, and calls on tensors."""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

_IMPORT_ERROR: str | None = None
_C: ModuleType | None
try:
    _C = importlib.import_module("sparse_runtime._C")
except ImportError as error:  # a source tree without a build still has the reference
    _C, _IMPORT_ERROR = None, str(error)


def openmp_entry() -> int:
    """Address of GOMP_parallel in the OpenMP runtime that torch's operators use, or 0.

    The kernels then run on the threads that torch already has, instead of competing with them for
    the cores (csrc/core/thread_pool.h).
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # A symbol is looked up in the library and in what it was linked with.
        function = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):  # another system's file name, or a runtime without it
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


if _C is not None:
    _C.use_openmp(openmp_entry())


def extension() -> ModuleType:
    """The extension module.

    Raises:
        RuntimeError: it is not built.
    """
    if _C is None:
        raise RuntimeError(f"sparse_runtime._C is not built ({_IMPORT_ERROR}): pip install -e .")
    return _C


def unavailable() -> str | None:
    """Why the extension cannot be used, or None."""
    return None if _C is not None else f"sparse_runtime._C is not built ({_IMPORT_ERROR})"


def address(tensor: Tensor | None) -> int:
    """The data pointer of a CPU tensor, 0 for None; any other device raises ValueError."""
    if tensor is None:
        return 0
    if not tensor.is_cpu:
        raise ValueError(f"the C++ kernels read CPU memory, got a tensor on {tensor.device}")
    return tensor.data_ptr()


def rows_of(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix in ``dtype``, copied unless its rows are contiguous and do not overlap."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    row, column = tensor.stride()
    regular = column == 1 and row >= tensor.shape[1]
    return tensor if regular else tensor.contiguous()
