"""Which devices the CUDA backend runs on."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

LEAST_CAPABILITY = (8, 0)
"""sm_80: the first with bf16 tensor cores, asynchronous copies and 2:4 sparsity."""


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton interprets kernels: the backend then runs on CPU tensors, for tests."""
    # Triton itself is asked last: importing it takes a while, and few machines need it.
    if not _has_triton() or "TRITON_INTERPRET" not in os.environ:
        return False
    from ...kernels.interpreter_triton import interprets

    return interprets()


def unavailable() -> str | None:
    """Why this machine cannot run the backend at all, or None."""
    if not _has_triton():
        return "triton is not installed: pip install 'sparse-runtime[gpu]'"
    if interpreting():
        return None
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if max(capabilities) < LEAST_CAPABILITY:
        return f"needs compute capability 8.0 or later, the best here is {_dotted(capabilities)}"
    return None


def refuses(device: torch.device) -> str | None:
    """Why layers on ``device`` cannot be run, or None."""
    if device.type == "cpu" and interpreting():
        return None
    if device.type != "cuda":
        return f"runs on cuda, the layer is on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"needs compute capability 8.0 or later, {device} has {_dotted([capability])}"
    return None


def _dotted(capabilities: list[tuple[int, int]]) -> str:
    return "{}.{}".format(*max(capabilities))
