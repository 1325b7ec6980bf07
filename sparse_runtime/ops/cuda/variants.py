"""A weight in the layout of one kernel family, ready to be launched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.linear.operands import Epilogue, Quantized, Target
from ...kernels.linear.configs import Workspace


class Variant(ABC):
    """One way to multiply by a weight; launches check nothing and allocate nothing.

    Attributes:
        family: name of the kernel family.
        nbytes: of values and indices on the device.
    """

    family: ClassVar[str]
    nbytes: int

    @abstractmethod
    def launch(
        self,
        x: Quantized | Tensor,
        epilogue: Epilogue,
        activation: str | None,
        target: Target,
        scheme: str,
        workspace: Workspace,
    ) -> None:
        """Multiply, finish as ``epilogue`` says and store as ``target`` asks."""

    @abstractmethod
    def workspace_needs(self, tokens: int) -> tuple[int, int]:
        """Four-byte elements of partial sums, and counters, of a launch on ``tokens`` rows."""


class Cublas(Variant):
    """cuBLASLt through PyTorch, then the epilogue in a kernel of its own."""

    family: ClassVar[str] = "cublas"

    def __init__(self, matrix: Tensor) -> None:
        """Hold ``matrix``, int8 or float [out, in], rows contiguous."""
        from ...kernels.linear.epilogue_rows_triton import epilogue_rows

        self.nbytes = matrix.nbytes
        self._turned = matrix.t()
        self._outputs = matrix.shape[0]
        self._epilogue_rows = epilogue_rows
        self._product = torch.int32 if matrix.dtype == torch.int8 else matrix.dtype

    def launch(
        self,
        x: Quantized | Tensor,
        epilogue: Epilogue,
        activation: str | None,
        target: Target,
        scheme: str,
        workspace: Workspace,
    ) -> None:
        rows = x if isinstance(x, Tensor) else x.q
        count = len(rows) * self._outputs
        assert workspace.partials is not None
        acc = workspace.partials.view(self._product)[:count].view(len(rows), self._outputs)
        multiply = torch._int_mm if self._product == torch.int32 else torch.mm
        multiply(rows, self._turned, out=acc)
        quantized = None if isinstance(x, Tensor) else x
        self._epilogue_rows(acc, quantized, epilogue, activation, target, scheme)

    def workspace_needs(self, tokens: int) -> tuple[int, int]:
        return -(-tokens * self._outputs * self._product.itemsize // 4), 0
