"""What this machine can do at most, measured in the same run as the kernels it judges."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional as F

from sparse_runtime.ops import CANDIDATES, LinearRequest, LinearWeight
from sparse_runtime.testing import make_activations, make_packed, measure_interleaved

COPY_BYTES = tuple(2**power for power in range(19, 29))
"""Bytes read and written by the copies, from what a core's cache holds to what only memory does."""

GEMM_SIZES = (1024, 1536)
"""Sides of the square products; the faster one counts."""


@dataclass(frozen=True)
class Roofline:
    """Measured ceilings for the number of threads in use.

    Attributes:
        copy_gb_s: bytes that a copy moves (read and written) -> GB/s.
        peak_gops: "fp32", "bf16", "int8" -> 10^9 operations per second of the fastest dense
            product, a multiplication and an addition counting as two.
    """

    copy_gb_s: dict[int, float]
    peak_gops: dict[str, float]

    def floor_us(self, operations: float, moved: int, precision: str) -> tuple[float, str]:
        """The shortest time for this work and what bounds it, "compute" or "memory".

        Args:
            operations: multiplications and additions.
            moved: bytes read and written. They are held against the copy of the nearest size, for
                what fits in a cache is not bound by memory.
            precision: a key of ``peak_gops``.
        """
        compute = operations / self.peak_gops[precision] / 1e3
        size = min(self.copy_gb_s, key=lambda size: abs(math.log(max(moved, 1) / size)))
        memory = moved / self.copy_gb_s[size] / 1e3
        return max((compute, "compute"), (memory, "memory"))

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        data = asdict(self)
        data["copy_gb_s"] = {str(size): speed for size, speed in self.copy_gb_s.items()}
        return data


def measure_roofline(
    *,
    copy_bytes: tuple[int, ...] = COPY_BYTES,
    gemm_sizes: tuple[int, ...] = GEMM_SIZES,
    min_seconds: float = 0.2,
) -> Roofline:
    """Measure copies and square dense products with the present number of threads.

    The INT8 peak is the best of ``torch._int_mm``, the product alone, and every candidate that
    takes a dense INT8 layer.

    The shortest call counts: a ceiling is what the machine can do, not what it did while busy.

    Args:
        copy_bytes: sizes to copy, read and written together.
        gemm_sizes: sides of the matrices, and numbers of tokens.
        min_seconds: counted time per product; a copy takes a quarter of it.
    """
    peaks: dict[str, float] = {}
    for size in gemm_sizes:
        products = _products(size)
        timings = measure_interleaved(
            {name: run for name, (_, run) in products.items()},
            min_rounds=5,
            min_seconds=min_seconds,
        )
        for name, timing in timings.items():
            precision = products[name][0]
            gops = 2 * size**3 / timing.percentile(0) / 1e9
            peaks[precision] = max(peaks.get(precision, 0.0), gops)
    return Roofline({size: _copy_gb_s(size, min_seconds / 4) for size in copy_bytes}, peaks)


def _products(size: int) -> dict[str, tuple[str, Any]]:
    """name -> (precision, callable) of everything that may set a peak."""
    x, weight = make_activations(size, size), make_activations(size, size, seed=1)
    x16, weight16 = x.bfloat16(), weight.bfloat16()
    products: dict[str, tuple[str, Any]] = {
        "torch fp32": ("fp32", lambda: F.linear(x, weight)),
        "torch bf16": ("bf16", lambda: F.linear(x16, weight16)),
    }
    if hasattr(torch, "_int_mm"):
        x8, weight8 = (t.clamp(-4, 4).mul(31).to(torch.int8) for t in (x, weight))
        products["torch._int_mm"] = ("int8", lambda: torch._int_mm(x8, weight8.t()))
    packed = make_packed((size, size), values="int8")
    request = LinearRequest((LinearWeight("peak", packed),), torch.device("cpu"), torch.float32)
    for candidate in CANDIDATES:
        reason = (
            candidate.unavailable() or candidate.rejects(request) or candidate.asked_only(request)
        )
        if candidate.backend != "reference" and reason is None:
            layer = candidate.prepare(request)
            products[candidate.name] = ("int8", lambda layer=layer: layer(x))
    return products


def _copy_gb_s(size: int, min_seconds: float) -> float:
    source = torch.zeros(size // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    timing = measure_interleaved({"copy": lambda: target.copy_(source)}, min_seconds=min_seconds)
    return 2 * source.numel() / timing["copy"].percentile(0) / 1e9
