"""Operations on packed weights: candidates, the choice among them, and the fused backends."""

from __future__ import annotations

from ..kernels.padding.operands import Padded
from .backends import Activation, Backend, get_backend
from .choose import Considered, Decision, choose
from .cpu_backend import CpuBackend
from .registry import BACKENDS, CANDIDATES
from .types import (
    Candidate,
    LinearRequest,
    LinearWeight,
    Norm,
    PreparedLinear,
    TokenBatch,
    can_fuse,
)

__all__ = [
    "BACKENDS",
    "CANDIDATES",
    "Activation",
    "Backend",
    "Candidate",
    "Considered",
    "CpuBackend",
    "Decision",
    "LinearRequest",
    "LinearWeight",
    "Norm",
    "Padded",
    "PreparedLinear",
    "TokenBatch",
    "can_fuse",
    "choose",
    "get_backend",
]
