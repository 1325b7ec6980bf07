"""What a GPU reaches at most, measured in the run that is compared with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparse_runtime.benchmarks.gpu.timing import time_kernels
from sparse_runtime.testing import Timing

COPY_BYTES = 2**30
GEMM_SIZE = 8192


@dataclass(frozen=True)
class Ceilings:
    """Measured limits; None where the operation did not run.

    Attributes:
        copy_gb_s: device-to-device copy of 1 GiB, bytes read and written, 10^9 a second.
        bf16_tflops: matrix product of 8192^3 on random bf16, 10^12 a second.
        int8_tops: ``torch._int_mm`` of the same size, 10^12 a second.
    """

    copy_gb_s: float | None
    bf16_tflops: float | None
    int8_tops: float | None


def measure_ceilings() -> Ceilings:
    """Measure on the current GPU, about a second."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    c, d = (
        torch.randint(-127, 128, (GEMM_SIZE, GEMM_SIZE), device="cuda", dtype=torch.int8)
        for _ in "cd"
    )
    timings = time_kernels(
        {
            "copy": [lambda: target.copy_(source)],
            "bf16": [lambda: torch.mm(a, b.t())],
            "int8": [lambda: torch._int_mm(c, d.t())],
        },
        rounds=5,
    )

    def rate(name: str, work: float) -> float | None:
        found = timings[name]
        return work / found.percentile(0) if isinstance(found, Timing) else None

    operations = 2 * GEMM_SIZE**3
    return Ceilings(
        copy_gb_s=rate("copy", 2 * COPY_BYTES / 1e9),
        bf16_tflops=rate("bf16", operations / 1e12),
        int8_tops=rate("int8", operations / 1e12),
    )
