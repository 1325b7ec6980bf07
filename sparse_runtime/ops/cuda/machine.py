"""What a GPU can do at most: the ground of predictions, where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

# Multiply-adds count twice. Dense peaks of one multiprocessor in one clock, by compute capability,
# from NVIDIA's architecture papers: A100 (312 Tflop/s of bf16 at 1.41 GHz on 108), GA102, AD102,
# H100 SXM (989 Tflop/s at 1.83 GHz on 132), B200 (2.25 Pflop/s, 148; integers as on sm_90).
_PER_CLOCK: dict[int, dict[str, int]] = {
    80: {"half": 2048, "int8": 4096, "fp32": 128},
    86: {"half": 1024, "int8": 2048, "fp32": 256},
    89: {"half": 1024, "int8": 2048, "fp32": 256},
    90: {"half": 4096, "int8": 8192, "fp32": 256},
    100: {"half": 8192, "int8": 8192, "fp32": 256},
}


@dataclass(frozen=True)
class Machine:
    """One kind of GPU.

    Attributes:
        name: as the driver gives it.
        capability: 90 for sm_90.
        processors: multiprocessors.
        l2_bytes: size of the L2 cache.
        bytes_per_second: of its memory, at most.
        operations: per second at most, by ``Problem.product``; a multiply-add is two.
    """

    name: str
    capability: int
    processors: int
    l2_bytes: int
    bytes_per_second: float
    operations: dict[str, float] = field(hash=False)


H100 = Machine(
    name="NVIDIA H100 80GB HBM3",
    capability=90,
    processors=132,
    l2_bytes=50 << 20,
    bytes_per_second=3.35e12,
    operations={"half": 989e12, "int8": 1979e12, "fp32": 67e12},
)
"""Stands for the machine where Triton interprets and there is no GPU."""


@cache
def machine_of(device: torch.device) -> Machine:
    """The GPU at ``device``; :data:`H100` for the CPU, where kernels are only interpreted."""
    if device.type != "cuda":
        return H100
    return from_properties(torch.cuda.get_device_properties(device))


def from_properties(properties: Any) -> Machine:
    """Read ``torch.cuda.get_device_properties``; clocks are in kHz, the bus in bits."""
    capability = 10 * properties.major + properties.minor
    known = max((c for c in _PER_CLOCK if c <= capability), default=min(_PER_CLOCK))
    clocks = 1e3 * properties.clock_rate * properties.multi_processor_count
    return Machine(
        name=properties.name,
        capability=capability,
        processors=properties.multi_processor_count,
        l2_bytes=properties.L2_cache_size,
        # Two transfers a clock, in DDR, GDDR and HBM alike.
        bytes_per_second=2e3 * properties.memory_clock_rate * properties.memory_bus_width / 8,
        operations={name: clocks * count for name, count in _PER_CLOCK[known].items()},
    )
