"""Which configuration should be fastest: a small model of what a tile costs, in clock cycles.

It is what defaults rest on where nothing was measured (configs.py), and says only which of two
configurations is better, not how long a launch takes. Two times bound a multiprocessor: ``busy``,
the work of all of its programs on the units that they share, and ``alone``, the latencies that one
program waits for, as often as programs follow one another. Cycles and shares are assumed:
no GPU has been measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as pairs
from math import ceil
from typing import NamedTuple

from .tiles import Config

ITEM_BYTES = {"int8": 1, "half": 2, "fp32": 4}
STEP_INPUTS = {"int8": 128, "half": 64, "fp32": 32}
"""128 bytes of a row: whole lines of memory, and the widest swizzle of shared memory."""

LATENCY = 700
"""Cycles from a load to its data, between a hit in L2 (300) and one in memory under load (1000)."""

L2_BYTES = 40
"""What a multiprocessor gets of L2 in a cycle while all ask: 5120 over 108 and 132, and of these
what matrix products reach."""

EPILOGUE = 0.25
"""Cycles a result takes behind the products: 20 to 40 instructions, 128 lanes at a time."""

EXCHANGE = 1500
"""Cycles of a split's fence, count and wait for its turn."""


class Machine(NamedTuple):
    """What the model knows of a GPU.

    Attributes:
        processors: multiprocessors.
        shared: bytes of shared memory of each.
        products: multiplications and additions of each in a cycle at most, by kind of product.
        small: of these, what is reached where a tile has fewer than 64 tokens (``mma.sync``).
        large: the same of larger tiles (``wgmma`` on sm_90).
        tma: whether it has a copy engine for tiles.
    """

    processors: int
    shared: int
    products: dict[str, int]
    small: float
    large: float
    tma: bool


MACHINES = {
    80: Machine(108, 163 << 10, {"int8": 2048, "half": 1024, "fp32": 64}, 0.7, 0.85, False),
    86: Machine(84, 99 << 10, {"int8": 1024, "half": 512, "fp32": 128}, 0.7, 0.85, False),
    89: Machine(142, 99 << 10, {"int8": 1024, "half": 512, "fp32": 128}, 0.7, 0.85, False),
    90: Machine(132, 227 << 10, {"int8": 4096, "half": 2048, "fp32": 128}, 0.5, 0.85, True),
    120: Machine(170, 99 << 10, {"int8": 1024, "half": 512, "fp32": 128}, 0.7, 0.85, False),
}
"""A100, GA102, AD102, H100 SXM and GB202, from NVIDIA's architecture papers. Others take the
nearest below, which never has more shared memory."""


def known(capability: int) -> int:
    """Which of ``MACHINES`` a GPU of this compute capability (80 for sm_80) follows."""
    return max((machine for machine in MACHINES if machine <= capability), default=80)


def candidates(
    product: str, tokens: int, out_features: int, in_features: int, capability: int
) -> list[Config]:
    """Every configuration that fits, the best first.

    Args:
        product: "int8", "half" (bf16, fp16) or "fp32".
        tokens: rows.
        out_features: outputs.
        in_features: inputs.
        capability: 80 for sm_80.
    """
    machine = MACHINES[known(capability)]
    sizes = (tokens, out_features, in_features)
    found = set(_fitting(product, tokens, in_features, machine))

    def order(config: Config) -> tuple[float, int, Config]:
        larger_first = -config.block_m * config.block_n  # fewer bytes for the same cycles
        return cycles(config, product, *sizes, machine), larger_first, config

    return sorted(found, key=order)


def cycles(
    config: Config,
    product: str,
    tokens: int,
    out_features: int,
    in_features: int,
    machine: Machine,
) -> float:
    """Clock cycles of a launch, to compare with other configurations of the same product."""
    m, n, k, split, warps, stages, _, tma = config
    tiles = ceil(tokens / m) * ceil(out_features / n)
    programs = ceil(tiles * split / machine.processors)
    steps = ceil(ceil(in_features / k) / split)
    bytes_of_step = (m + n) * k * ITEM_BYTES[product]
    share = machine.small if m < 64 else machine.large
    step = max(m * n * k / (machine.products[product] * share), bytes_of_step / L2_BYTES)
    ending = m * n * EPILOGUE
    # A split's sums are written, and read by the last: as if each read its own.
    exchange = (EXCHANGE + 8 * m * n / L2_BYTES) if split > 1 else 0
    busy = programs * (steps * step + ending + exchange)
    # Of the 65,536 registers, a thread takes its sums and what the compiled kernels take beside.
    registers = (m * n // (32 * warps) + (50 if tma else 90)) * 32 * warps
    resident = min(machine.shared // (stages * bytes_of_step), (1 << 16) // registers)
    waiting = max(step, LATENCY / (stages - 1))
    rounds = ceil(programs / max(1, resident))
    alone = rounds * (LATENCY + steps * waiting + ending + exchange)
    return max(busy, alone)


def _fitting(product: str, tokens: int, in_features: int, machine: Machine) -> Iterator[Config]:
    k = STEP_INPUTS[product]
    steps = ceil(in_features / k)
    # Products of float32 keep operands in registers: larger tiles would spill.
    heights = (16, 32, 64, 128) if product != "fp32" else (16, 32, 64)
    widths = (32, 64, 128, 256) if product != "fp32" else (64,)
    for m, n, split in pairs(heights, widths, (1, 2, 4, 8)):
        if m > 16 and m >= 2 * tokens:
            continue
        if n == 256 and m < 128:  # a wide tile of few tokens reads as much and hides less
            continue
        if split > 1 and steps < 2 * split:
            continue
        warps = 8 if m * n >= 128 * 128 else 4
        most = machine.shared // ((m + n) * k * ITEM_BYTES[product])
        stages = min(6, ceil(steps / split) + 1, most // 2 if most >= 6 else most)
        if stages >= 2:
            # Few tokens wait for latency, of which the copy engine has more.
            tma = machine.tma and m >= 64 and product != "fp32"
            yield Config(m, n, k, split, warps, stages, tma=tma)
