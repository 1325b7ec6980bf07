"""Values of a graph that depend on no input: initializers, and what is computed of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import CheckpointError, listed
from ..numbers import finite
from .nodes import Node

INTEGERS = {"int8": (-128, 127), "uint8": (0, 255), "int32": (-(2**31), 2**31 - 1)}
_CASTS = {1: torch.float32, 10: torch.float16}


@dataclass(frozen=True)
class Constant:
    """A tensor that the file holds, or that follows from such tensors alone.

    Attributes:
        shape: its sizes.
        dtype: as torch spells it, or what the file calls a type that is not read.
        load: gives the data.
        leaves: names of the file's tensors that it is made of.
        quantized: the integers that it is dequantized from, if it is.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Tensor]
    leaves: frozenset[str] = frozenset()
    quantized: Quantized | None = None

    def scalar(self, what: str) -> float:
        """The one element that it has, as float or int.

        Raises:
            CheckpointError: it has more, or none.
        """
        if torch.Size(self.shape).numel() != 1:
            raise CheckpointError(f"{what}: expected one number, got shape {list(self.shape)}")
        return self.load().item()


@dataclass(frozen=True)
class Quantized:
    """Integers and what turns them into floats: (values - zero_point) * scale.

    Attributes:
        values: int8, uint8 or int32.
        scale: float32, one number or one for each place of ``axis``.
        zero_point: of the type of ``values``, one or one a scale; None is 0.
        axis: of ``values``, along which scales differ.
    """

    values: Constant
    scale: Constant
    zero_point: Constant | None
    axis: int

    def zeros(self) -> Tensor:
        """int32, the zero points in the shape of ``scale``."""
        if self.zero_point is None:
            return torch.zeros(self.scale.shape, dtype=torch.int32)
        return (
            self.zero_point.load()
            .int()
            .reshape(-1)
            .expand(math.prod(self.scale.shape))
            .reshape(self.scale.shape)
        )

    def dequantize(self) -> Tensor:
        """As ONNX DequantizeLinear does: the difference is exact, the product float32."""
        difference = self.values.load().int() - self._along(self.zeros())
        return difference.float() * self._along(self.scale.load())

    def _along(self, numbers: Tensor) -> Tensor:
        if numbers.numel() == 1:
            return numbers.reshape(())
        sizes = [1] * len(self.values.shape)
        sizes[self.axis] = -1
        return numbers.reshape(sizes)


def folded(node: Node, known: Mapping[str, Constant]) -> Constant | None:
    """What a node makes of constants; None where it reads others, or is no operation on weights.

    Raises:
        CheckpointError: types, shapes or attributes contradict each other.
    """
    if not node.inputs or any(name and name not in known for name in node.inputs):
        return None
    inputs = [known[name] for name in node.inputs if name]
    if node.op == "Identity":
        return inputs[0]
    if node.op == "Transpose":
        return _transposed(node, inputs[0])
    if node.op == "Cast" and node.attributes.get("to") in _CASTS:
        return _cast(inputs[0], _CASTS[node.attributes["to"]])
    if node.op == "DequantizeLinear":
        return _dequantized(node, inputs)
    if node.op == "QuantizeLinear":
        return _quantized(node, inputs)
    return None


def _transposed(node: Node, source: Constant) -> Constant:
    order = node.attributes.get("perm", list(range(len(source.shape)))[::-1])
    if sorted(order) != list(range(len(source.shape))):
        raise CheckpointError(
            f"{node.title}: perm {order} is no order of the axes of {list(source.shape)}"
        )
    return transposed(source, tuple(order))


def transposed(source: Constant, order: tuple[int, ...]) -> Constant:
    """A constant with its axes in another order, and its integers with it."""
    quantized = source.quantized
    if quantized is not None:
        axis = order.index(quantized.axis) if quantized.axis in order else 0
        quantized = replace(quantized, values=transposed(quantized.values, order), axis=axis)
    shape = tuple(source.shape[place] for place in order)
    return replace(
        source, shape=shape, load=lambda: source.load().permute(order), quantized=quantized
    )


def sliced(source: Constant, rows: range) -> Constant:
    """Some places of the first axis, or of a vector that has axes of 1 before it."""
    if source.quantized is None:
        load = source.load
        flat = math.prod(source.shape) == source.shape[-1]
        shape = (len(rows),) if flat else (len(rows), *source.shape[1:])
        return replace(
            source,
            shape=shape,
            load=lambda: (load().reshape(-1) if flat else load())[rows.start : rows.stop],
        )
    stored = source.quantized
    if stored.axis != 0 and math.prod(stored.scale.shape) > 1:
        raise CheckpointError(f"{listed(source.leaves)}: scales by input cannot be cut by output")
    zero = stored.zero_point
    quantized = replace(
        stored,
        values=sliced(stored.values, rows),
        scale=_numbers(stored.scale, rows),
        zero_point=None if zero is None else _numbers(zero, rows),
    )
    shape = (len(rows), *source.shape[1:])
    return replace(source, shape=shape, load=quantized.dequantize, quantized=quantized)


def _numbers(constant: Constant, rows: range) -> Constant:
    return constant if math.prod(constant.shape) == 1 else sliced(constant, rows)


def _cast(source: Constant, dtype: torch.dtype) -> Constant:
    name = str(dtype).removeprefix("torch.")
    if source.dtype == name:
        return source
    return Constant(source.shape, name, lambda: source.load().to(dtype), source.leaves)


def _dequantized(node: Node, inputs: list[Constant]) -> Constant:
    values, scale = inputs[0], inputs[1]
    zero_point = inputs[2] if len(inputs) > 2 else None
    axis = _check(node, values, scale, zero_point)
    if values.dtype not in INTEGERS:
        raise CheckpointError(
            f"{node.title}: expected int8, uint8 or int32, got {values.dtype}, which is not read"
        )
    quantized = Quantized(values, scale, zero_point, axis)
    parts = frozenset().union(*(part.leaves for part in inputs))
    return Constant(values.shape, "float32", quantized.dequantize, parts, quantized)


def _quantized(node: Node, inputs: list[Constant]) -> Constant:
    source, scale = inputs[0], inputs[1]
    zero_point = inputs[2] if len(inputs) > 2 else None
    dtype = "uint8" if zero_point is None else zero_point.dtype
    if dtype not in ("int8", "uint8"):
        raise CheckpointError(f"{node.title}: expected int8 or uint8, got {dtype}, not read")
    axis = _check(node, source, scale, zero_point)
    low, high = INTEGERS[dtype]
    frame = Quantized(source, scale, zero_point, axis)

    def load() -> Tensor:
        # ONNX QuantizeLinear: a float32 quotient, rounded half to even, clamped last.
        floats = finite(listed(source.leaves), source.load().float())
        places = torch.round(floats / frame._along(scale.load()))
        shifted = places + frame._along(frame.zeros())
        return shifted.clamp(low, high).to(getattr(torch, dtype))

    parts = frozenset().union(*(part.leaves for part in inputs))
    return Constant(source.shape, dtype, load, parts)


def _check(node: Node, values: Constant, scale: Constant, zero_point: Constant | None) -> int:
    """The axis of the scales; CheckpointError where scales or zero points do not fit."""
    if node.attributes.get("block_size"):
        raise CheckpointError(f"{node.title}: scales of blocks are not read")
    count = torch.Size(scale.shape).numel()
    rank = len(values.shape)
    axis = node.attributes.get("axis", 1)
    axis = axis + rank if axis < 0 else axis
    # The default axis means nothing where there is one scale, even for a vector.
    if count == 1:
        axis = min(axis, max(rank - 1, 0))
    elif len(scale.shape) != 1 or not 0 <= axis < rank or count != values.shape[axis]:
        raise CheckpointError(
            f"{node.title}: expected one scale, or one for each place of axis {axis} of "
            f"{list(values.shape)}, got shape {list(scale.shape)}"
        )
    if scale.dtype != "float32":
        raise CheckpointError(f"{node.title}: expected float32 scales, got {scale.dtype}")
    numbers = scale.load()
    if not bool((torch.isfinite(numbers) & (numbers > 0)).all()):
        raise CheckpointError(
            f"{node.title}: expected finite scales above 0, got "
            f"{numbers[~(torch.isfinite(numbers) & (numbers > 0))].flatten()[0].item()}; the file "
            "is damaged"
        )
    if zero_point is not None and torch.Size(zero_point.shape).numel() not in (1, count):
        raise CheckpointError(
            f"{node.title}: expected one zero point, or one a scale ({count}), got shape "
            f"{list(zero_point.shape)}"
        )
    return axis
