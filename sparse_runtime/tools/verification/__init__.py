"""verify(): proof that a packed model says what its dense original says (docs/verify.md)."""

from __future__ import annotations

from ..thresholds import Thresholds
from .report import (
    Agreement,
    Check,
    Cosine,
    Drift,
    Implementation,
    Spearman,
    VerifyReport,
)
from .run import verify

__all__ = [
    "Agreement",
    "Check",
    "Cosine",
    "Drift",
    "Implementation",
    "Spearman",
    "Thresholds",
    "VerifyReport",
    "verify",
]
