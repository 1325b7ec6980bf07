"""The shortest time that a pass' products could take, by instructions timed in the same run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from sparse_runtime.encoders import SparseModel
from sparse_runtime.ops.native import extension
from sparse_runtime.store import PackedLinear

LAYER = re.compile(r"^.*\.\d+\.")
"""What stands before a module's name within its layer."""


def measure_peaks(threads: int) -> dict[str, float]:
    """Operations a second of each product instruction on all threads at once (``_C.peaks``)."""
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda _: extension().peaks(), range(threads)))
    return {name: sum(peaks[name] for peaks in found) for name in found[0]}


def product_floors(
    model: SparseModel, lengths: Sequence[int], peaks: dict[str, float]
) -> dict[str, float]:
    """Seconds of one pass' products at the peak, by module name within a layer, and "attention".

    A linear layer may multiply its nonzeros on the vector unit or the dense matrix on the matrix
    unit; the faster counts. Attention's two products take the fastest unit for floats that the
    layers' values allow. Everything between the products (softmax, GELU, LayerNorm, quantization)
    counts nothing, so no pass can reach this.

    Args:
        model: on the CPU backend.
        lengths: tokens of each sequence.
        peaks: from :func:`measure_peaks`.
    """
    tokens, squares = sum(lengths), sum(length * length for length in lengths)
    floors: dict[str, float] = {}
    rounded = False
    for name, linear in model.packed.linears.items():
        if LAYER.match(name):
            kind = LAYER.sub("", name)
            floors[kind] = floors.get(kind, 0.0) + tokens * _seconds_a_token(linear, peaks)
            rounded |= linear.packed.spec.values.dtype != "fp32"
    speed = max(peaks["fp32"], peaks.get("bf16_tiles", 0.0) if rounded else 0.0)
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    return floors | {"attention": 4 * squares * hidden * layers / speed}


def stage_floor(kind: str, floors: dict[str, float]) -> float | None:
    """The floor of a stage by its kind (:mod:`.breakdown`), or None where it has no products."""
    names, _, step = kind.partition(" (")
    known = [floors[name] for name in names.split(" + ") if name in floors]
    return sum(known) if known and not step else None


def _seconds_a_token(linear: PackedLinear, peaks: dict[str, float]) -> float:
    spec = linear.packed.spec
    dense = 2 * spec.shape[0] * spec.shape[1]
    kept = 2 * int(torch.count_nonzero(linear.packed.unpack()))
    if spec.activations is not None:
        unit = "int8"
    else:
        unit = "bf16" if spec.values.dtype == "bf16" else "fp32"
    seconds = kept / peaks[unit]
    tiles = peaks.get(f"{unit}_tiles")
    return seconds if tiles is None else min(seconds, dense / tiles)
