"""Numbers of a file that nothing may be computed from unseen."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import CheckpointError


def real(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself.

    Raises:
        CheckpointError: it is complex, or float8, which torch does not compute with.
    """
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize == 1):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{name}: expected real numbers of 16 bits or more, got {dtype}; the file is damaged, "
            "or of a layout that is not known"
        )
    return tensor


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself.

    Raises:
        CheckpointError: it has NaN or infinity, which comparing, rounding or masking would hide,
            or is not :func:`real`.
    """
    wrong = ~torch.isfinite(real(name, tensor))
    if bool(wrong.any()):
        place = [int(i) for i in wrong.nonzero()[0]]
        raise CheckpointError(
            f"{name}: expected finite numbers, got {tensor[tuple(place)].item()} at {place}; "
            "the training run that wrote it has diverged, or the file is damaged"
        )
    return tensor
