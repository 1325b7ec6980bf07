"""Scales and zero points of integers, checked, which several layouts have."""

from __future__ import annotations

import torch
from torch import Tensor

from ...spec import ActivationSpec
from ..draft import LazyTensor
from ..errors import CheckpointError


def check_layout(
    name: str, tensor: LazyTensor, shapes: tuple[tuple[int, ...], ...], dtypes: tuple[str, ...]
) -> None:
    """Raise CheckpointError unless a tensor has one of these shapes and dtypes."""
    if tensor.shape not in shapes or tensor.dtype not in dtypes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise CheckpointError(
            f"{name}: expected {' or '.join(dtypes)} {wanted}, got {tensor.dtype} "
            f"{list(tensor.shape)}; the file is damaged"
        )


def load_scales(name: str, tensor: LazyTensor) -> Tensor:
    """Scales as float32, in the shape of the file.

    Raises:
        CheckpointError: one is not a finite number above 0.
    """
    scales = tensor.load().to(torch.float32)
    wrong = ~(torch.isfinite(scales) & (scales > 0))
    if bool(wrong.any()):
        raise CheckpointError(
            f"{name}: expected finite scales above 0, got {scales[wrong][0].item()}; the file is "
            "damaged"
        )
    return scales


def load_zero_points(name: str, tensor: LazyTensor, bits: int = 8) -> Tensor:
    """Zero points as int8, in the shape of the file.

    Raises:
        CheckpointError: one is out of the range of the integers.
    """
    zero_points = tensor.load()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    integral = zero_points.to(torch.int64)
    if bool(((integral != zero_points) | (integral < low) | (integral > high)).any()):
        raise CheckpointError(
            f"{name}: expected zero points from {low} to {high}, got others; the file is damaged"
        )
    return integral.to(torch.int8)


def check_range(name: str, weight: Tensor, bits: int) -> Tensor:
    """An int8 weight, unless a value is beyond ``bits``: then CheckpointError."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if weight.numel() and not low <= int(weight.min()) <= int(weight.max()) <= high:
        raise CheckpointError(
            f"{name}: expected integers from {low} to {high}, got {int(weight.min())} to "
            f"{int(weight.max())}; the file is damaged"
        )
    return weight


def static_int8(name: str, scale: LazyTensor, zero_point: int) -> ActivationSpec:
    """Static int8 activations with the one scale of a tensor.

    Raises:
        CheckpointError: the scale is not one that can be divided by.
    """
    try:
        return ActivationSpec("static", "int8", float(load_scales(name, scale)), zero_point)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}; the file is damaged") from error
