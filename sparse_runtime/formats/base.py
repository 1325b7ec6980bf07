"""What the four packed formats share: values, scales, checks and sizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ..spec import INTEGER_RANGES, LinearSpec
from .bits import pack_nibbles, unpack_nibbles


@dataclass(frozen=True)
class PackedSize:
    """Bytes of one packed weight."""

    values: int
    index: int
    scales: int
    zero_points: int = 0

    @property
    def total(self) -> int:
        """All bytes together."""
        return self.values + self.index + self.scales + self.zero_points


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedWeight(ABC):
    """A weight in canonical packed form; one subclass per structure.

    Attributes:
        spec: what the tensors mean.
        values: the kept numbers, in ``spec.values.dtype`` (int4: nibbles in uint8).
        scales: float32 [``spec.scale_count``] for integer values, else None. Groups of a row's
            inputs have theirs side by side, row by row.
        zero_points: int8 [``spec.scale_count``] where ``spec.values.zero_points``, else None.
    """

    INDEX: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that say where the values sit."""

    spec: LinearSpec
    values: Tensor
    scales: Tensor | None = None
    zero_points: Tensor | None = None

    @classmethod
    @abstractmethod
    def pack(cls, weight: Tensor, spec: LinearSpec, scales: Tensor | None = None) -> Self:
        """Pack a checked weight; use :func:`sparse_runtime.formats.pack`."""

    @abstractmethod
    def unpack(self) -> Tensor:
        """The stored values as a matrix [out, in] in ``spec.values.torch_dtype``."""

    @abstractmethod
    def _expected(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """dtype and shape each tensor must have."""

    @abstractmethod
    def _check_content(self) -> None:
        """Raise ValueError where a tensor of the right shape holds what no packer writes."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by field name, in a fixed order, only those that there are."""
        names = [f.name for f in fields(self) if f.name != "spec"]
        return {name: t for name in names if (t := getattr(self, name)) is not None}

    @classmethod
    def from_tensors(cls, spec: LinearSpec, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from :meth:`tensors`, with every check of :meth:`validate`.

        Raises:
            ValueError: a tensor is missing, unknown, or not what ``spec`` asks for.
        """
        expected = set(cls.tensor_names(spec))
        if set(tensors) != expected:
            missing, unknown = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
            raise ValueError(f"missing tensors {missing}, unknown tensors {unknown}")
        packed = cls(spec=spec, **tensors)
        packed.validate()
        return packed

    @classmethod
    def tensor_names(cls, spec: LinearSpec) -> tuple[str, ...]:
        """Names of the tensors a weight of this spec is made of."""
        scales = ("scales",) if spec.values.is_integer else ()
        zero_points = ("zero_points",) if spec.values.zero_points else ()
        return ("values", *cls.INDEX, *scales, *zero_points)

    def validate(self) -> None:
        """Check dtypes, shapes and content against the MUSTs of docs/formats.

        Raises:
            ValueError: naming the tensor, what was expected and what came.
        """
        if self.zero_points is not None:
            check_tensor("zero_points", self.zero_points, torch.int8, (self.spec.scale_count,))
        if self.scales is not None:
            check_tensor("scales", self.scales, torch.float32, (self.spec.scale_count,))
            if not bool((torch.isfinite(self.scales) & (self.scales > 0)).all()):
                raise ValueError("scales: expected finite numbers above 0, got another value")
        for name, (dtype, shape) in self._expected().items():
            check_tensor(name, getattr(self, name), dtype, shape)
        if self.values.is_floating_point():
            if not bool(torch.isfinite(self.values).all()):
                raise ValueError("values: expected finite numbers, got NaN or infinity")
            if bool(((self.values == 0) & torch.signbit(self.values)).any()):
                raise ValueError("values: expected zeros without a sign, got -0.0")
        self._check_content()

    def row_scales(self) -> Tensor:
        """float32 [out]: the scale of each row, whatever the granularity; ones for floats.

        Raises:
            ValueError: a row's groups of inputs have scales of their own ("group").
        """
        if self.scales is None:
            return torch.ones(self.spec.shape[0], device=self.values.device)
        return self._by_row(self.scales)

    def row_zero_points(self) -> Tensor:
        """int32 [out]: the zero point of each row, as :meth:`row_scales`; zeros without any."""
        if self.zero_points is None:
            return torch.zeros(self.spec.shape[0], dtype=torch.int32, device=self.values.device)
        return self._by_row(self.zero_points).to(torch.int32)

    def _by_row(self, numbers: Tensor) -> Tensor:
        values, rows = self.spec.values, self.spec.shape[0]
        if values.granularity == "group":
            raise ValueError(
                f"scales {values.scales!r}: expected one scale a row, got one for each group of "
                "inputs; use scale_columns()"
            )
        if values.granularity == "chunk":
            # Not repeat_interleave: a chunk may name far more rows than there are.
            row = torch.arange(rows, device=numbers.device)
            return numbers[row // values.chunk_rows]
        return numbers.expand(rows)

    def scale_columns(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points by row and group of inputs, whatever the granularity.

        Returns:
            (float32 [out, groups], int32 [out, groups]); one group but for "group". Ones and zeros
            where there are none.
        """
        rows = self.spec.shape[0]
        if self.spec.values.granularity != "group" or self.scales is None:
            return self.row_scales().unsqueeze(1), self.row_zero_points().unsqueeze(1)
        scales = self.scales.view(rows, -1)
        if self.zero_points is None:
            return scales, torch.zeros_like(scales, dtype=torch.int32)
        return scales, self.zero_points.view(rows, -1).to(torch.int32)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The logical weight [out, in] in ``dtype``: ``(stored - zero point) * scale``."""
        return self.scaled(self.unpack(), dtype)

    def scaled(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """:meth:`dequantize` of values that are already decoded.

        Args:
            stored: [out, in], as :meth:`unpack` gives them.
            dtype: float type of the result; subtraction and product are in it.
        """
        weight = stored.to(dtype)
        if self.scales is None:
            return weight
        scales, zero_points = (self._by_column(numbers) for numbers in self.scale_columns())
        if self.zero_points is not None:
            weight = weight - zero_points.to(dtype)
        return weight * scales.to(dtype)

    def _by_column(self, numbers: Tensor) -> Tensor:
        """[out, groups] -> what broadcasts over [out, in]."""
        length = self.spec.values.group_cols
        if not length:
            return numbers
        # Not repeat_interleave: a group may name far more inputs than there are.
        return numbers[:, torch.arange(self.spec.shape[1], device=numbers.device) // length]

    def size(self) -> PackedSize:
        """Bytes of values, of index tensors, of scales and of zero points."""
        return PackedSize(
            values=self.values.nbytes,
            index=sum(getattr(self, name).nbytes for name in self.INDEX),
            scales=0 if self.scales is None else self.scales.nbytes,
            zero_points=0 if self.zero_points is None else self.zero_points.nbytes,
        )

    def to(self, device: torch.device | str) -> Self:
        """The same weight on another device."""
        moved: dict[str, Any] = {name: t.to(device) for name, t in self.tensors().items()}
        return replace(self, **moved)


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ``tensor`` has this dtype and shape."""
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name}: expected {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
        )


def check_bias(name: str, bias: Tensor, rows: int) -> None:
    """Raise ValueError unless a bias is a finite float vector of ``rows`` numbers."""
    if not bias.is_floating_point() or tuple(bias.shape) != (rows,):
        raise ValueError(
            f"{name}: expected floats [{rows}], one for each row of the weight, got {bias.dtype} "
            f"{list(bias.shape)}"
        )
    if not bool(torch.isfinite(bias).all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def check_weight(weight: Tensor, spec: LinearSpec, scales: Tensor | None) -> Tensor:
    """Check a matrix before packing and bring it to canonical form (no negative zero)."""
    if tuple(weight.shape) != spec.shape:
        raise ValueError(f"weight: expected shape {spec.shape}, got {tuple(weight.shape)}")
    if weight.dtype != spec.values.torch_dtype:
        raise TypeError(
            f"weight: {spec.values.dtype} values are packed from {spec.values.torch_dtype}, got "
            f"{weight.dtype}; convert or quantize it first (formats.cast_values)"
        )
    if (scales is not None) != spec.values.is_integer:
        raise ValueError(
            f"scales: {spec.values.dtype} values "
            + ("need them" if spec.values.is_integer else "have none")
        )
    if not spec.values.is_integer:
        check_finite(weight)
        return torch.where(weight == 0, torch.zeros_like(weight), weight)
    low, high = INTEGER_RANGES[spec.values.dtype]
    if weight.numel() and not (low <= int(weight.min()) and int(weight.max()) <= high):
        raise ValueError(f"weight: {spec.values.dtype} values lie in [{low}, {high}]")
    return weight


def check_finite(weight: Tensor) -> None:
    """Raise ValueError naming the first NaN or infinity of a float matrix."""
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        row, col = (int(i) for i in (~finite).nonzero()[0])
        raise ValueError(
            f"weight[{row}, {col}] is {weight[row, col].item()}: only finite weights can be packed"
        )


def encode_values(values: Tensor, spec: LinearSpec) -> Tensor:
    """Values [..., n] -> what is stored: nibbles for int4, else the same, contiguous."""
    return pack_nibbles(values) if spec.values.dtype == "int4" else values.contiguous()


def decode_values(stored: Tensor, spec: LinearSpec, count: int) -> Tensor:
    """Undo :func:`encode_values` for a last dimension of ``count`` values."""
    return unpack_nibbles(stored, count) if spec.values.dtype == "int4" else stored


def stored_shape(spec: LinearSpec, *shape: int) -> tuple[torch.dtype, tuple[int, ...]]:
    """dtype and shape that :func:`encode_values` gives values of this shape."""
    if spec.values.dtype != "int4":
        return spec.values.torch_dtype, shape
    return torch.uint8, (*shape[:-1], -(-shape[-1] // 2))


def check_nibble_padding(stored: Tensor, spec: LinearSpec, count: int) -> None:
    """Raise ValueError where the unused high nibble of an odd row is set."""
    if spec.values.dtype == "int4" and count % 2 and bool((stored[..., -1] >> 4).any()):
        raise ValueError("values: expected the unused last nibble to be 0, got another value")
