"""Every way to run a linear layer, fastest first."""

from __future__ import annotations

from .cpu_float import CpuFloatCandidate
from .cpu_int8 import CpuInt8Candidate
from .reference import ReferenceCandidate
from .types import Candidate

CANDIDATES: tuple[Candidate, ...] = (
    CpuInt8Candidate(),
    CpuFloatCandidate(),
    ReferenceCandidate(),
)

BACKENDS: tuple[str, ...] = tuple(sorted({candidate.backend for candidate in CANDIDATES}))
