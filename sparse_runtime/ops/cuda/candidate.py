"""The candidate "cuda" of :mod:`sparse_runtime.ops.registry`."""

from __future__ import annotations

from typing import ClassVar

from ..types import Candidate, LinearRequest, PreparedLinear
from .device import refuses, unavailable
from .linear import CudaLinear


class CudaCandidate(Candidate):
    """Every structure and value type, on our kernels or a library's."""

    name: ClassVar[str] = "cuda"
    backend: ClassVar[str] = "cuda"

    def unavailable(self) -> str | None:
        return unavailable()

    def rejects(self, request: LinearRequest) -> str | None:
        return refuses(request.device)

    def note(self, request: LinearRequest, *, measure: bool = False) -> str:
        return "Triton kernels"

    def prepare(self, request: LinearRequest) -> PreparedLinear:
        return CudaLinear(request)
