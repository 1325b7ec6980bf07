"""A quantized weight as it lies in the file: values, scales, zero points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ....spec import LinearSpec, Structure, ValueSpec
from ...draft import FLOATS, Draft, LazyTensor
from ...errors import CheckpointError
from ..scales import check_layout, check_range, load_scales, load_zero_points
from .packing import BITS, unpack_int32, words
from .schemes import UNCOMPRESSED_FORMATS, Arguments, Scheme


class Parts(NamedTuple):
    """``w = (values - zero_points) * scales``, a scale for each share of the weight.

    ``values`` are int8 or float8 [out, in]; ``scales`` float32 and ``zero_points`` int8, or None,
    [shares along the rows, shares along the columns].
    """

    values: Tensor
    scales: Tensor
    zero_points: Tensor | None


@dataclass(frozen=True)
class StoredWeight:
    """A weight that is not read yet.

    Attributes:
        shape: [out, in].
        share: rows and columns under one scale; those at the edge may be smaller.
        nbytes: in the file, scales and zero points included.
        asymmetric: whether there are zero points.
        load: reads it.
    """

    shape: tuple[int, int]
    share: tuple[int, int]
    nbytes: int
    asymmetric: bool
    load: Callable[[], Parts]


def find_weight(draft: Draft, module: str, scheme: Scheme, arguments: Arguments) -> StoredWeight:
    """Take the weight of a module out of the draft.

    Raises:
        CheckpointError: a tensor is missing, or is not what the config says.
    """
    if f"{module}.weight_packed" in draft.tensors:
        shape, values, read = _packed(draft, module, arguments)
    else:
        shape, values, read = _plain(draft, module, scheme, arguments)
    try:
        LinearSpec(shape, Structure("dense"), ValueSpec("fp32"))
    except ValueError as error:
        raise CheckpointError(f"{module}.weight: {error}; the file is damaged") from error
    share = _share(module, arguments, shape)
    grid = (-(-shape[0] // share[0]), -(-shape[1] // share[1]))
    name = f"{module}.weight_scale"
    scale = draft.take(name)
    check_layout(name, scale, _shapes(arguments, grid), FLOATS)
    parts = [values, scale]
    zero_points = _zero_points(draft, module, scheme, arguments, grid, parts)

    def load() -> Parts:
        scales = load_scales(name, scale).reshape(grid)
        zeros = None if zero_points is None else zero_points()
        return Parts(read(scales, zeros), scales, zeros)

    nbytes = sum(part.nbytes for part in parts)
    return StoredWeight(shape, share, nbytes, zero_points is not None, load)


def spread(numbers: Tensor, shape: tuple[int, int], share: tuple[int, int]) -> Tensor:
    """One number for each share -> one for each value."""
    rows, cols = (torch.arange(size) // length for size, length in zip(shape, share, strict=True))
    return numbers[rows][:, cols]


_Found = tuple[tuple[int, int], LazyTensor, Callable[[Tensor, "Tensor | None"], Tensor]]


def _packed(draft: Draft, module: str, arguments: Arguments) -> _Found:
    bits = arguments.bits
    if arguments.type != "int" or bits not in BITS:
        raise CheckpointError(
            f"{module}.weight_packed: expected packed integers of 4 or 8 bits, got {arguments}; "
            "convert the float checkpoint"
        )
    name = f"{module}.weight_shape"
    stated = draft.take(name)
    check_layout(name, stated, ((2,),), ("int64", "int32"))
    rows, cols = (int(size) for size in stated.load())
    name = f"{module}.weight_packed"
    packed = draft.take(name)
    check_layout(name, packed, ((rows, words(cols, bits)),), ("int32",))
    return (rows, cols), packed, lambda scales, zeros: unpack_int32(packed.load(), bits, cols)


def _plain(draft: Draft, module: str, scheme: Scheme, arguments: Arguments) -> _Found:
    name = f"{module}.weight"
    stored = draft.take(name)
    if len(stored.shape) != 2:
        raise CheckpointError(f"{name}: expected a matrix, got {list(stored.shape)}")
    shape = (stored.shape[0], stored.shape[1])
    integral = arguments.type == "int"
    if stored.dtype == ("int8" if integral else "float8_e4m3fn"):
        if not integral:
            return shape, stored, lambda scales, zeros: stored.load()
        return (
            shape,
            stored,
            lambda scales, zeros: check_range(name, stored.load(), arguments.bits),
        )
    if not (integral and scheme.format in UNCOMPRESSED_FORMATS and stored.dtype in FLOATS):
        raise CheckpointError(
            f"{name}: expected the values of {scheme.format!r}, {arguments}, got {stored.dtype}; "
            "the file and its config.json disagree"
        )

    def quantized(scales: Tensor, zeros: Tensor | None) -> Tensor:
        share = _share(module, arguments, shape)
        scaled = stored.load().to(torch.float32) / spread(scales, shape, share)
        if zeros is not None:
            scaled = scaled + spread(zeros, shape, share)
        limit = 2 ** (arguments.bits - 1)
        if not bool(torch.isfinite(scaled).all()):
            raise CheckpointError(f"{name}: expected finite numbers, got NaN or infinity")
        return scaled.clamp(-limit, limit - 1).round().to(torch.int8)

    return shape, stored, quantized


def _share(module: str, arguments: Arguments, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a weight that share a scale."""
    rows, cols = shape
    if arguments.strategy == "block" and arguments.block and arguments.type == "float":
        return arguments.block
    shares = {"tensor": (rows, cols), "channel": (1, cols), "group": (1, arguments.group_size)}
    if arguments.strategy not in shares:
        raise CheckpointError(
            f"{module}.weight_scale: a scale for each {arguments.strategy} of {arguments.type} "
            "weights is not supported, expected one for each tensor, channel or group; convert "
            "the float checkpoint"
        )
    return shares[arguments.strategy]


def _shapes(arguments: Arguments, grid: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    """Shapes in which files have the scales of a grid of shares."""
    if arguments.strategy == "tensor":
        return (grid, (1,), ())
    return (grid, grid[:1]) if arguments.strategy == "channel" else (grid,)


def _zero_points(
    draft: Draft,
    module: str,
    scheme: Scheme,
    arguments: Arguments,
    grid: tuple[int, int],
    parts: list[LazyTensor],
) -> Callable[[], Tensor] | None:
    name = f"{module}.weight_zero_point"
    if arguments.symmetric:
        _drop_zeros(draft, name)
        return None
    if arguments.type != "int":
        raise CheckpointError(f"{name}: float values have no zero points; the file is damaged")
    if scheme.omits_zeros and name not in draft.tensors:
        return None
    stored = draft.take(name)
    parts.append(stored)
    bits = arguments.bits
    if stored.dtype == "int32":  # packed along the rows, as in pack-quantized
        check_layout(name, stored, ((words(grid[0], bits), grid[1]),), ("int32",))
        return lambda: unpack_int32(stored.load().T.contiguous(), bits, grid[0]).T.contiguous()
    check_layout(name, stored, _shapes(arguments, grid), ("int8",))
    return lambda: load_zero_points(name, stored, bits).reshape(grid)


def _drop_zeros(draft: Draft, name: str) -> None:
    """Zero points that older versions wrote of symmetric weights."""
    if name not in draft.tensors:
        return
    if bool(draft.tensors[name].load().to(torch.float32).any()):
        raise CheckpointError(
            f"{name}: expected zeros, as the config states symmetric values, got others"
        )
    draft.drop([name], "zeros, as the values are symmetric")
