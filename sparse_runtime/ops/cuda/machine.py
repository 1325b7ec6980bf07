"""What a GPU can do at most: the ground of predictions, where nothing was measured."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

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
    index = torch.cuda.current_device() if device.index is None else device.index
    return from_properties(torch.cuda.get_device_properties(index), clocks_of(index))


class Clocks(NamedTuple):
    """How fast a GPU can run.

    Attributes:
        processors_khz: of its multiprocessors, at most.
        memory_khz: of its memory, at most.
        bus_bits: width of the memory's bus.
    """

    processors_khz: int
    memory_khz: int
    bus_bits: int


_ATTRIBUTES = Clocks(13, 36, 37)
"""``CU_DEVICE_ATTRIBUTE_CLOCK_RATE``, ``..MEMORY_CLOCK_RATE``, ``..GLOBAL_MEMORY_BUS_WIDTH``."""

H100_CLOCKS = Clocks(1_830_000, 2_619_000, 5120)
"""That give :data:`H100`'s peaks."""


def clocks_of(device: int) -> Clocks:
    """Ask the driver: not every PyTorch from 2.9 on tells, and CUDA 13's runtime has them no more.

    Where it does not say, those of an H100, with a warning: they only weigh predictions.

    Args:
        device: number of the GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        found = [_attribute(driver, device, attribute) for attribute in _ATTRIBUTES]
    except OSError as error:
        logger.warning("clocks of GPU %d: taken for an H100's: %s", device, error)
        return H100_CLOCKS
    return Clocks(*found)


def _attribute(driver: Any, device: int, attribute: int) -> int:
    number, value = ctypes.c_int(), ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(number), device)
    status = status or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, number)
    if status or value.value <= 0:
        raise OSError(f"the driver gives {value.value} for attribute {attribute}, error {status}")
    return value.value


def from_properties(properties: Any, rates: Clocks) -> Machine:
    """Read ``torch.cuda.get_device_properties``."""
    capability = 10 * properties.major + properties.minor
    known = max((c for c in _PER_CLOCK if c <= capability), default=min(_PER_CLOCK))
    clocks = 1e3 * rates.processors_khz * properties.multi_processor_count
    return Machine(
        name=properties.name,
        capability=capability,
        processors=properties.multi_processor_count,
        l2_bytes=properties.L2_cache_size,
        # Two transfers a clock, in DDR, GDDR and HBM alike.
        bytes_per_second=2e3 * rates.memory_khz * rates.bus_bits / 8,
        operations={name: clocks * count for name, count in _PER_CLOCK[known].items()},
    )
