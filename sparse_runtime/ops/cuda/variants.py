"""A weight in one layout with one configuration, ready to be launched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...kernels.linear.configs import Workspace
from ...kernels.linear.operands import DYNAMIC_SCHEMES, Epilogue, Quantized, Target

Launcher = Callable[..., None]
"""(x, weight, epilogue, activation, target, scheme, config, workspace)"""

Needs = Callable[[int], tuple[int, int]]
"""Tokens -> four-byte elements of partial sums, and counters."""


class Variant(ABC):
    """One way to multiply by a weight; launches check nothing."""

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

    @abstractmethod
    def launches(self, tokens: int, scheme: str) -> int:
        """Kernels that :meth:`launch` enqueues; a library's product counts as one."""

    def target_counters(self, tokens: int) -> int:
        """Elements of ``Target.counters`` where the result is quantized by a dynamic scheme."""
        return 0


class TritonVariant(Variant):
    """A kernel of ours: one launch."""

    def __init__(self, launcher: Launcher, weight: Any, config: Any, needs: Needs) -> None:
        self._launcher = launcher
        self._weight = weight
        self._config = config
        self._needs = needs

    def launch(
        self,
        x: Quantized | Tensor,
        epilogue: Epilogue,
        activation: str | None,
        target: Target,
        scheme: str,
        workspace: Workspace,
    ) -> None:
        self._launcher(
            x, self._weight, epilogue, activation, target, scheme, self._config, workspace
        )

    def workspace_needs(self, tokens: int) -> tuple[int, int]:
        return self._needs(tokens)

    def launches(self, tokens: int, scheme: str) -> int:
        return 1

    def target_counters(self, tokens: int) -> int:
        return -(-tokens // int(self._config.block_m))


class LibraryVariant(TritonVariant):
    """A kernel of the CUDA library: a second launch quantizes rows, and nothing counts tiles."""

    def launches(self, tokens: int, scheme: str) -> int:
        return 2 if scheme in DYNAMIC_SCHEMES else 1

    def target_counters(self, tokens: int) -> int:
        return 0


class Cublas(Variant):
    """cuBLASLt through PyTorch, then the epilogue in a kernel of its own."""

    def __init__(self, matrix: Tensor) -> None:
        """Hold ``matrix``, int8 or float [out, in], inputs side by side."""
        from ...kernels.linear.epilogue_rows_triton import epilogue_rows

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
        rows, quantized = (x, None) if isinstance(x, Tensor) else (x.q, x)
        assert workspace.partials is not None  # workspace_needs asks for them
        acc = workspace.partials.view(self._product)[: len(rows) * self._outputs]
        acc = acc.view(len(rows), self._outputs)
        multiply = torch._int_mm if self._product == torch.int32 else torch.mm
        multiply(rows, self._turned, out=acc)
        self._epilogue_rows(acc, quantized, epilogue, activation, target, scheme)

    def workspace_needs(self, tokens: int) -> tuple[int, int]:
        return -(-tokens * self._outputs * self._product.itemsize // 4), 0

    def launches(self, tokens: int, scheme: str) -> int:
        return 2


class Cusparselt(Variant):
    """cuSPARSELt's 2:4 product through PyTorch, then the epilogue in a kernel of its own.

    The library allocates its result, from PyTorch's memory, which a graph keeps for itself.
    """

    def __init__(self, matrix: Tensor) -> None:
        """Compress ``matrix``, int8, bf16 or fp16 [out, in] with two of four inputs."""
        from ...kernels.linear.epilogue_rows_triton import epilogue_rows

        self._product = torch.int32 if matrix.dtype == torch.int8 else None
        self._turns = _cusparselt_turns(matrix.device, matrix.dtype, self._product)
        self._packed = torch._cslt_compress(matrix)
        self.nbytes = self._packed.nbytes
        self._multiple = 16 if matrix.dtype == torch.int8 else 8
        self._epilogue_rows = epilogue_rows

    def launch(
        self,
        x: Quantized | Tensor,
        epilogue: Epilogue,
        activation: str | None,
        target: Target,
        scheme: str,
        workspace: Workspace,
    ) -> None:
        rows, quantized = (x, None) if isinstance(x, Tensor) else (x.q, x)
        missing = -len(rows) % self._multiple
        padded = torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
        acc = torch._cslt_sparse_mm(
            self._packed, padded.t(), out_dtype=self._product, transpose_result=self._turns
        )
        if not self._turns:
            acc = acc.t().contiguous()
        self._epilogue_rows(acc[: len(rows)], quantized, epilogue, activation, target, scheme)

    def workspace_needs(self, tokens: int) -> tuple[int, int]:
        return 0, 0

    def launches(self, tokens: int, scheme: str) -> int:
        pads, copies = tokens % self._multiple != 0, not self._turns
        return 2 + pads + copies


@cache
def _cusparselt_turns(
    device: torch.device, dtype: torch.dtype, product: torch.dtype | None
) -> bool:
    """Whether this release stores a result with the outputs of a token side by side.

    Asked once, by a small product while a weight is packed, which no graph captures.
    """
    small = torch.zeros(32, 64, dtype=dtype, device=device)
    try:
        packed = torch._cslt_compress(small)
        torch._cslt_sparse_mm(packed, small.t(), out_dtype=product, transpose_result=True)
    except RuntimeError:
        return False
    return True
