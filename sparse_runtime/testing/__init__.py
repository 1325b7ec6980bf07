"""Problems, tolerances and timers that tests, benchmarks and new kernel families share."""

from __future__ import annotations

from .problems import LinearProblem, make_activations, make_linear_problem, make_packed, make_weight
from .timers import Timing, measure_interleaved
from .tolerances import (
    Errors,
    assert_close_to_oracle,
    attention_slack,
    errors_of,
    linear_in_order,
    linear_oracle,
)

__all__ = [
    "Errors",
    "LinearProblem",
    "Timing",
    "assert_close_to_oracle",
    "attention_slack",
    "errors_of",
    "linear_in_order",
    "linear_oracle",
    "make_activations",
    "make_linear_problem",
    "make_packed",
    "make_weight",
    "measure_interleaved",
]
