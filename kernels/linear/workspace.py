"""Memory that linear kernels use beside their operands."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Workspace(NamedTuple):
    """What programs of one launch share.

    Attributes:
        partials: elements of four bytes, int32 or float32, of any content; None where a launch
            needs none.
        counters: int32, zeros before and after every launch.
    """

    partials: Tensor | None
    counters: Tensor
