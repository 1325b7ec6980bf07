"""How small a packed model is, said so that nothing is hidden.

Values alone flatter a sparse format, a directory with its embeddings flatters none: the report
gives both, and what lies between.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .model import PackedModel
from .weights import WEIGHTS_FILE


@dataclass(frozen=True)
class ScopeSize:
    """Bytes of one part of a model.

    Attributes:
        parameters: numbers the part has when it is dense; integer and boolean buffers count none.
        fp32: bytes of the dense part in FP32; buffers count as they are.
        values: bytes of the stored values alone.
        packed: bytes of values, index and scales: what the part takes in the file.
    """

    parameters: int
    fp32: int
    values: int
    packed: int

    def __add__(self, other: ScopeSize) -> ScopeSize:
        return ScopeSize(
            self.parameters + other.parameters,
            self.fp32 + other.fp32,
            self.values + other.values,
            self.packed + other.packed,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with the ratios fp32 / values and fp32 / packed (None for zero bytes)."""
        return {
            "parameters": self.parameters,
            "fp32_bytes": self.fp32,
            "values_bytes": self.values,
            "packed_bytes": self.packed,
            "values_ratio": ratio(self.fp32, self.values),
            "packed_ratio": ratio(self.fp32, self.packed),
        }


@dataclass(frozen=True)
class SizeReport:
    """Sizes of a packed model against the same model in FP32.

    Attributes:
        linears: the packed weight matrices, without their biases.
        embeddings: the embedding tables.
        rest: biases, norms, heads and buffers.
        weights_file: bytes of model.safetensors, or None without a directory.
        directory: bytes of all files of the directory, or None.
    """

    linears: ScopeSize
    embeddings: ScopeSize
    rest: ScopeSize
    weights_file: int | None = None
    directory: int | None = None

    @property
    def model(self) -> ScopeSize:
        """The whole model."""
        return self.linears + self.embeddings + self.rest

    def to_dict(self) -> dict[str, Any]:
        """JSON form; ``disk_ratio`` is the model's FP32 bytes over those of model.safetensors."""
        file = self.weights_file
        return {
            "linears": self.linears.to_dict(),
            "embeddings": self.embeddings.to_dict(),
            "rest": self.rest.to_dict(),
            "model": self.model.to_dict(),
            "weights_file_bytes": file,
            "directory_bytes": self.directory,
            "disk_ratio": None if file is None else ratio(self.model.fp32, file),
        }


def ratio(dense: int, small: int) -> float | None:
    """How many times smaller, or None where nothing is left to divide by."""
    return dense / small if small else None


def size_report(model: PackedModel, directory: str | os.PathLike[str] | None = None) -> SizeReport:
    """Measure a packed model.

    Args:
        model: the model.
        directory: where it was saved, to report bytes on disk too.
    """
    biases = [linear.bias for linear in model.linears.values() if linear.bias is not None]
    tables = {n: t for n, t in model.tensors.items() if _is_table(n, t)}
    others = [tensor for name, tensor in model.tensors.items() if name not in tables]
    files = [p for p in Path(directory).rglob("*") if p.is_file()] if directory is not None else []
    return SizeReport(
        linears=_linears(model),
        embeddings=_plain(tables.values()),
        rest=_plain([*biases, *others]),
        weights_file=None if directory is None else (Path(directory) / WEIGHTS_FILE).stat().st_size,
        directory=None if directory is None else sum(path.stat().st_size for path in files),
    )


def _linears(model: PackedModel) -> ScopeSize:
    total = ScopeSize(0, 0, 0, 0)
    for linear in model.linears.values():
        size, (rows, cols) = linear.packed.size(), linear.packed.spec.shape
        total += ScopeSize(rows * cols, 4 * rows * cols, size.values, size.total)
    return total


def _is_table(name: str, tensor: Tensor) -> bool:
    return "embedding" in name and tensor.ndim == 2 and tensor.is_floating_point()


def _plain(tensors: Iterable[Tensor]) -> ScopeSize:
    total = ScopeSize(0, 0, 0, 0)
    for tensor in tensors:
        count = tensor.numel() if tensor.is_floating_point() else 0
        total += ScopeSize(count, 4 * count or tensor.nbytes, tensor.nbytes, tensor.nbytes)
    return total
