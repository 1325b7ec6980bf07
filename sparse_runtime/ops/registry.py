"""Every way to run a linear layer, fastest first."""

from __future__ import annotations

from .cpu_float import CpuFloatCandidate
from .cpu_panels import CpuPanelsCandidate
from .cuda.candidate import CudaCandidate
from .reference import ReferenceCandidate
from .types import Candidate

CANDIDATES: tuple[Candidate, ...] = (
    CpuPanelsCandidate(),
    CpuFloatCandidate(),
    CudaCandidate(),
    ReferenceCandidate(),
)

BACKENDS: tuple[str, ...] = tuple(sorted({candidate.backend for candidate in CANDIDATES}))
