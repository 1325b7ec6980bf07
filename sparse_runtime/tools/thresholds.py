"""The limits of verify(), apart from it so that the command line can show them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Thresholds:
    """Limits of a verification; None leaves a value unchecked.

    Attributes:
        min_cosine: smallest allowed mean cosine of the sentence embeddings.
        min_text_cosine: smallest allowed cosine of any single text's embedding.
        max_relative_drift: largest allowed relative drift of the output (:class:`Drift`).
        min_agreement: smallest allowed share of equal predictions.
        max_spearman_drop: how much lower the packed model's Spearman correlation may be.
        max_implementation_error: largest allowed relative difference between two backends after
            the first layer.
    """

    min_cosine: float | None = 0.99
    min_text_cosine: float | None = 0.95
    max_relative_drift: float | None = 0.2
    min_agreement: float | None = 0.95
    max_spearman_drop: float | None = 0.01
    max_implementation_error: float | None = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ValueError(f"{field.name}: expected a finite number or None, got {value!r}")
