"""Whether Triton runs kernels in Python instead of compiling them."""

from __future__ import annotations

import triton


def interprets() -> bool:
    """Whether kernels run on CPU tensors, one operation after another (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)
