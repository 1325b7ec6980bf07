"""Whether the Triton kernels run on a device."""

from __future__ import annotations

import sys
from functools import cache

import torch

LEAST_CAPABILITY = (8, 0)
"""Integer matrix instructions of the forms that the kernels use, bf16, asynchronous copies."""


@cache
def triton_missing() -> str | None:
    """Why triton cannot be used, or None."""
    try:
        from ...kernels.quantize import quantize_triton  # noqa: F401
    except ImportError as error:
        return f"triton does not import ({error}): pip install 'sparse-runtime[gpu]'"
    return None


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1): slow, on the CPU too."""
    return triton_missing() is None and bool(sys.modules["triton"].knobs.runtime.interpret)


def unsupported(device: torch.device) -> str | None:
    """Why the kernels do not run on ``device``, or None."""
    missing = triton_missing()
    if missing is not None:
        return missing
    if device.type == "cpu" and interpreting():
        return None
    if device.type != "cuda":
        return f"runs on NVIDIA GPUs, got device {device}"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        needed = ".".join(map(str, LEAST_CAPABILITY))
        return f"needs compute capability {needed}, {device} has {found[0]}.{found[1]}"
    return None
