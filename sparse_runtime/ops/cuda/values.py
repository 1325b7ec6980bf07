"""What is recorded of a pass: values, and the operation that makes each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ...kernels.attention import varlen
from ...spec import ActivationSpec, QuantizedAttention
from ..types import Norm, PreparedLinear, TokenBatch
from .linear import CudaLinear

Form = ActivationSpec | None
"""How a reader wants a value: rows quantized so, or None: floats."""


@dataclass(frozen=True)
class Pass:
    """The tokens that a recorded pass was recorded with."""

    batch: TokenBatch
    ids: tuple[Tensor, ...]


@dataclass(eq=False)
class Value:
    """A recorded [tokens, features].

    Attributes:
        run: the pass that it belongs to.
        node: makes it; becomes :class:`Rows` once its rows have been asked for.
        features: columns.
    """

    run: Pass
    node: Node
    features: int


class Node:
    """An operation.

    Attributes:
        fuses: whether its own launch can write quantized rows.
        in_parts: whether several programs make a row, so that a scale of a token's own is known
            only once floats are stored.
        repeatable: whether it can run for other tokens than those it was recorded with.
        capturable: whether it may be part of a CUDA graph: nothing of it depends on the host.
    """

    fuses: ClassVar[bool] = False
    in_parts: ClassVar[bool] = False
    repeatable: ClassVar[bool] = True

    @property
    def capturable(self) -> bool:
        return True

    @property
    def reads(self) -> Sequence[tuple[Value, Form]]:
        """The values it reads, and in which form."""
        return ()

    def launches(self, rows: int, scheme: str) -> int:
        """Kernels that it launches on so many rows; plain PyTorch's do not count.

        Args:
            rows: that are computed.
            scheme: by which it quantizes its result.
        """
        return 1


@dataclass(frozen=True, eq=False)
class Rows(Node):
    """Floats [tokens, features] that are there: the caller's, or of a pass that has run."""

    repeatable: ClassVar[bool] = False

    tensor: Tensor

    def launches(self, rows: int, scheme: str) -> int:
        return 0


@dataclass(frozen=True, eq=False)
class Embed(Node):
    """The sum of a row of each table, normalized."""

    fuses: ClassVar[bool] = True

    tables: tuple[Tensor, ...]
    norm: Norm | None


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """One or several layers side by side on the same input, each launched on its own.

    The outputs of several cannot be quantized by the launches that make them: a token's scale
    belongs to the whole row.
    """

    in_parts: ClassVar[bool] = True

    parts: tuple[CudaLinear, ...]
    x: Value
    activation: str | None
    residual: Value | None

    @property
    def fuses(self) -> bool:  # type: ignore[override]
        return len(self.parts) == 1

    def launches(self, rows: int, scheme: str) -> int:
        return sum(part.launches(rows, scheme) for part in self.parts)

    @property
    def reads(self) -> Sequence[tuple[Value, Form]]:
        read = [(self.x, part.activations) for part in self.parts]
        return read if self.residual is None else [*read, (self.residual, None)]


@dataclass(frozen=True, eq=False)
class Normalize(Node):
    """A norm of its own."""

    fuses: ClassVar[bool] = True

    x: Value
    norm: Norm

    @property
    def reads(self) -> Sequence[tuple[Value, Form]]:
        return [(self.x, None)]


@dataclass(frozen=True, eq=False)
class Attend(Node):
    """Self-attention in our kernel."""

    fuses: ClassVar[bool] = True
    in_parts: ClassVar[bool] = True

    qkv: Value
    heads: int
    scale: float
    bias: Tensor | None

    @property
    def head_size(self) -> int:
        """Features of a head."""
        return self.qkv.features // (3 * self.heads)

    @property
    def reads(self) -> Sequence[tuple[Value, Form]]:
        return [(self.qkv, None)]


@dataclass(frozen=True, eq=False)
class AttendVarlen(Node):
    """Self-attention in PyTorch's kernel, counted as ours; it writes floats and adds no bias."""

    qkv: Value
    heads: int
    scale: float

    def launches(self, rows: int, scheme: str) -> int:
        return varlen.launches()

    @property
    def reads(self) -> Sequence[tuple[Value, Form]]:
        return [(self.qkv, None)]


@dataclass(frozen=True, eq=False)
class AttendRows(Node):
    """Self-attention in plain PyTorch, sequence by sequence."""

    qkv: Value
    heads: int
    scale: float
    bias: Tensor | None
    quantized: QuantizedAttention | None

    def launches(self, rows: int, scheme: str) -> int:
        return 0

    @property
    def capturable(self) -> bool:
        return False  # it goes by the lengths, which the host knows

    @property
    def reads(self) -> Sequence[tuple[Value, Form]]:
        return [(self.qkv, None)]


@dataclass(frozen=True, eq=False)
class Apply(Node):
    """A layer that is no :class:`CudaLinear`, on rows of floats."""

    layer: PreparedLinear | nn.Module
    x: Value
    activation: str | None
    residual: Value | None

    def launches(self, rows: int, scheme: str) -> int:
        return 0

    @property
    def capturable(self) -> bool:
        # Plain modules are tensors' own operations; the reference copies numbers to the device.
        return not isinstance(self.layer, PreparedLinear)

    @property
    def reads(self) -> Sequence[tuple[Value, Form]]:
        return [(self.x, None)] + ([] if self.residual is None else [(self.residual, None)])
