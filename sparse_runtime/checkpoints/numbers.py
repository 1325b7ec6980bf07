"""Numbers of a file that nothing may be computed from unseen."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import CheckpointError


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself.

    Raises:
        CheckpointError: it has NaN or infinity, which comparing, rounding or masking would hide.
    """
    wrong = ~torch.isfinite(tensor)
    if bool(wrong.any()):
        place = [int(i) for i in wrong.nonzero()[0]]
        raise CheckpointError(
            f"{name}: expected finite numbers, got {tensor[tuple(place)].item()} at {place}; "
            "the training run that wrote it has diverged, or the file is damaged"
        )
    return tensor
