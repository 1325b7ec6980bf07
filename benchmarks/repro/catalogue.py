"""Every experiment of the suite, and those that the quick mode runs."""

from __future__ import annotations

from sparse_runtime.benchmarks.repro.experiments import DENSE, Experiment
from sparse_runtime.benchmarks.repro.papers import PAPERS
from sparse_runtime.benchmarks.repro.table import (
    BASE,
    BLOCK_ONE_SHOT,
    DISTILLED,
    MAGNITUDE_2_4,
    NINETY,
    OBS_2_4,
    ONE_SHOT,
)

EXPERIMENTS: tuple[Experiment, ...] = (*BASE, *ONE_SHOT, *DISTILLED, *PAPERS)
QUICK = (
    DENSE,
    "dense INT8",
    MAGNITUDE_2_4,
    OBS_2_4,
    BLOCK_ONE_SHOT,
    NINETY,
    "97 % INT8, movement",
    "CAP 97 % INT8",
)
