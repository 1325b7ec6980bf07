"""A checkpoint on its way from what a file holds to what a model needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..spec import QuantizedAttention
from .containers import Container
from .errors import CheckpointError, listed
from .options import Options
from .quantized import QuantizedLinear

FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read, or computed, when it is asked for.

    Attributes:
        shape: its sizes.
        dtype: as torch spells it, such as "float32".
        load: gives the data.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the data, without reading it."""
        return torch.Size(self.shape).numel() * int(getattr(torch, self.dtype).itemsize)


def check_sizes(name: str, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError for a parameter without an axis or without a number."""
    if not shape or 0 in shape:
        raise CheckpointError(
            f"{name}: expected a vector or a matrix with sizes from 1, got {list(shape)}; the file "
            "is damaged"
        )


@dataclass(frozen=True)
class Recognition:
    """A layout that a checkpoint has.

    Attributes:
        layout: its name.
        why: what in the files or in config.json shows it.
    """

    layout: str
    why: str


@dataclass
class Draft:
    """What layouts work on, one after the other: each takes away what it understands.

    Attributes:
        directory: where the checkpoint lies.
        config: the fields of config.json; a layout removes the sections that it has read and
            states what its steps change.
        container: the file or files.
        tensors: by today's name. What is left in the end must be the model's plain float tensors.
        options: what the user says of the checkpoint.
        linears: layers that the file states in integers, by module name; their ``X.weight`` is no
            longer in ``tensors``.
        attention: how attention's products are quantized, by layer, such as "encoder.layer.0".
        recognised: the layouts found so far.
        steps: what was done, in the order in which it was done, for reports.
        dropped: name -> why it was left out.
        absent: halves of layers that the network lacks, such as "bert.encoder.layer.3.attention"
            and "bert.encoder.layer.7.ffn"; their tensors, norms included, must have been dropped.
        head_size: features of an attention head, where hidden size over heads is another number.
    """

    directory: Path
    config: dict[str, Any]
    container: Container
    tensors: dict[str, LazyTensor]
    options: Options
    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    attention: dict[str, QuantizedAttention] = field(default_factory=dict)
    recognised: list[Recognition] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    head_size: int | None = None

    @property
    def where(self) -> str:
        """What errors call the checkpoint."""
        return self.directory.name

    def names(self, pattern: str) -> list[str]:
        """Names of tensors that match a regular expression as a whole, in the file's order."""
        compiled = re.compile(pattern)
        return [name for name in self.tensors if compiled.fullmatch(name)]

    def modules(self, ending: str) -> list[str]:
        """What stands before ``.ending`` in the names that end so, in the file's order."""
        return [name.removesuffix(f".{ending}") for name in self.names(rf".+\.{re.escape(ending)}")]

    def take(self, name: str) -> LazyTensor:
        """Remove a tensor and return it.

        Raises:
            CheckpointError: the file does not hold it.
        """
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.where}: {name} is missing, which its layout "
                f"({listed(found.layout for found in self.recognised)}) needs; the file is "
                "incomplete"
            )
        return self.tensors.pop(name)

    def take_float(self, name: str) -> LazyTensor:
        """Remove a tensor of floats that nothing has to be known of, and return it.

        Raises:
            CheckpointError: the file does not hold it, or in another dtype.
        """
        tensor = self.take(name)
        self.refuse_others({name: tensor})
        return tensor

    def refuse_others(self, tensors: Mapping[str, LazyTensor]) -> None:
        """Raise CheckpointError for tensors that are no floats which may be computed with."""
        others = {n: tensor.dtype for n, tensor in tensors.items() if tensor.dtype not in FLOATS}
        if others:
            raise CheckpointError(
                f"{self.where}: expected float32, bfloat16 or float16 tensors, got "
                f"{listed(f'{name} ({dtype})' for name, dtype in others.items())}; "
                + (
                    "save the model as float32"
                    if {*others.values()} == {"float64"}
                    else "integers and other kinds of floats mean nothing without their layout, "
                    "and none that is known has read them: convert the float checkpoint"
                )
            )

    def put(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, load: Callable[[], Tensor]
    ) -> None:
        """Add a tensor that is computed when it is asked for.

        Raises:
            CheckpointError: the name is taken, or the shape empty.
        """
        self._require_free(name)
        check_sizes(name, shape)
        self.tensors[name] = LazyTensor(shape, str(dtype).removeprefix("torch."), load)

    def change(self, name: str, dtype: torch.dtype, compute: Callable[[Tensor], Tensor]) -> None:
        """Put what ``compute`` makes of a tensor of floats in its place, in the same shape.

        Raises:
            CheckpointError: the file does not hold it, or in another dtype.
        """
        before = self.take_float(name)
        self.put(name, before.shape, dtype, lambda: compute(before.load()))

    def put_linear(self, module: str, linear: QuantizedLinear) -> None:
        """Add a layer that the file states in integers.

        Raises:
            CheckpointError: its weight is in the file as well, or empty.
        """
        self._require_free(f"{module}.weight")
        check_sizes(f"{module}.weight", linear.shape)
        self.linears[module] = linear

    def _require_free(self, name: str) -> None:
        if name in self.tensors or name.removesuffix(".weight") in self.linears:
            raise CheckpointError(
                f"{self.where}: {name} is in the file both plain and in the layout "
                f"{self.recognised[-1].layout}; remove the stale one"
            )

    def drop(self, names: Iterable[str], why: str) -> None:
        """Leave tensors out."""
        for name in list(names):
            self.take(name)
            self.dropped[name] = why
