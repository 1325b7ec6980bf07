"""Integer weights of a graph as a packed model takes them."""

from __future__ import annotations

import math

import torch

from ...spec import ValueSpec
from ..errors import CheckpointError
from ..quantized import QuantizedValues
from .constants import Constant, Quantized

_INT8 = (-128, 127)


def value_spec(name: str, weight: Constant, stored: Quantized) -> ValueSpec:
    """How the integers of a weight are to be read.

    Where zero points are not 0, the difference to them is what counts: it is kept as int8 if it
    fits, and beside its zero points if not.

    Args:
        name: what errors call it.
        weight: [out, in].
        stored: the integers behind it, in the same order of axes.

    Raises:
        CheckpointError: types or scales that no linear layer takes.
    """
    if stored.values.dtype not in ("int8", "uint8"):
        raise CheckpointError(f"{name}: expected int8 or uint8, got {stored.values.dtype}")
    single = math.prod(stored.scale.shape) == 1
    if not single and stored.axis != 0:
        raise CheckpointError(
            f"{name}: expected one scale, or one an output ({weight.shape[0]}), got one an input"
        )
    return ValueSpec("int8", "tensor" if single else "row", zero_points=not _fits(stored))


def read_values(stored: Quantized) -> QuantizedValues:
    """The integers of a weight, scales, and zero points where the differences do not fit."""
    scales = stored.scale.load().reshape(-1).clone()
    if _fits(stored):
        return QuantizedValues(_differences(stored).to(torch.int8).contiguous(), scales)
    shift = 128 if stored.values.dtype == "uint8" else 0
    weight = (stored.values.load().int() - shift).to(torch.int8)
    zero_points = (stored.zeros().reshape(-1) - shift).to(torch.int8)
    return QuantizedValues(weight.contiguous(), scales, zero_points)


def _fits(stored: Quantized) -> bool:
    if stored.values.dtype == "int8" and not bool(stored.zeros().any()):
        return True
    low, high = torch.aminmax(_differences(stored))
    return _INT8[0] <= int(low) and int(high) <= _INT8[1]


def _differences(stored: Quantized) -> torch.Tensor:
    zeros = stored.zeros()
    if zeros.numel() > 1:
        sizes = [1] * len(stored.values.shape)
        sizes[stored.axis] = -1
        zeros = zeros.reshape(sizes)
    return stored.values.load().int() - zeros
