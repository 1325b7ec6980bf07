"""What each device layout costs on this machine: measured once, kept in the user's cache.

A kernel's time on one panel is close to ``per_unit * units + per_row * rows``; two weights of
different density give both numbers. See docs/kernels/cost_model.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import time
from dataclasses import asdict, astuple, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .cache_files import cache_folder, write_whole
from .native import extension

if TYPE_CHECKING:
    from .. import _C

VERSION = 5
"""Of the file; another is measured anew."""

INT8_LAYOUTS = (
    "dense",
    "band4_grouped",
    "band4_gathered",
    "band1_grouped",
    "band1_gathered",
    "tiles",
    "tile_bits",
)
FLOAT_LAYOUTS = ("dense32", "sparse32")
FEW, MANY = "few", "many"
"""One vector of 16 tokens, and whole panels of 64."""

_ROWS, _COLUMNS = 256, 768
_DENSITIES = (0.3, 0.06)
_REPEATS = 12
AMX_LAYOUTS = ("tiles", "tile_bits", "tiles16")
_AMX_PANELS = 4  # they reuse a tile for several panels
_VECTORS = {FEW: 1, MANY: 4}  # of 16 tokens, in the last panel
# Panels that share one reading of a weight: the layers of a model do not fit a core's caches
# together, so each pass reads them anew. Few tokens are one vector, a short batch is two panels.
_SHARING = {FEW: 1, MANY: 2}
_STREAM_BYTES = 32 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """Seconds of one kernel on one panel.

    Attributes:
        per_unit: for each unit that it multiplies.
        per_row: for each row of the weight.
        per_byte: for each byte of the weight, which comes from beyond the core's own caches.
    """

    per_unit: float
    per_row: float
    per_byte: float = 0.0

    def seconds(self, units: int, rows: int, nbytes: int = 0) -> float:
        """Predicted time on one panel, one thread."""
        return self.per_unit * units + self.per_row * rows + self.per_byte * nbytes


Costs = dict[str, dict[str, Cost]]
"""By layout, then by FEW or MANY; layouts that do not run here are missing."""


@cache
def machine_costs() -> Costs:
    """This machine's costs: from the cache file, or measured now (below a second) and kept."""
    try:
        return _decode(json.loads(cache_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not there yet, of another version, or not what was written
    costs = measure()
    try:
        _write(cache_file(), costs)
    except OSError as error:  # a read-only home: measured again next time
        logger.info("cost model not kept: %s", error)
    return costs


def cache_file() -> Path:
    """Where the costs of this CPU and instruction set are kept.

    Raises:
        OSError: XDG_CACHE_HOME is not set and the user has no home.
    """
    names = [row["name"] for row in extension().isas() if row["available"]]
    wanted = os.environ.get("SPARSE_RUNTIME_ISA", "auto")
    key = json.dumps([platform.machine(), _cpu_name(), names, wanted, extension().build_info()])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_folder() / f"cpu-costs-{digest}.json"


def measure() -> Costs:
    """Time every layout that runs here on two small weights, on one thread."""
    rng = np.random.default_rng(0)
    full = rng.integers(1, 128, (_ROWS, _COLUMNS)).astype(np.int8)
    weights = [full * (rng.random(full.shape) < density) for density in _DENSITIES]
    weights = [weight.astype(np.int8) for weight in weights]
    counts = [extension().int8_panels_count(w.ctypes.data, _ROWS, _COLUMNS) for w in weights]
    costs: Costs = {}
    for layout in _int8_layouts():
        costs[layout] = _costs(layout, weights, [count[layout] for count in counts])
    floats = [weight.astype(np.float32) for weight in weights]
    counts = [extension().float_panels_count(w.ctypes.data, _ROWS, _COLUMNS) for w in floats]
    for layout in FLOAT_LAYOUTS:
        costs[layout] = _costs(layout, floats, [count[layout] for count in counts])
    per_byte = _measure_stream()
    return {
        layout: {
            regime: replace(cost, per_byte=per_byte / _SHARING[regime])
            for regime, cost in regimes.items()
        }
        for layout, regimes in costs.items()
    }


def _measure_stream() -> float:
    """Seconds a byte that one thread needs to read what is in no cache of its own."""
    stream = np.ones(_STREAM_BYTES // 8, dtype=np.uint64)
    best = math.inf
    for _ in range(3):
        begin = time.perf_counter()
        stream.sum()
        best = min(best, time.perf_counter() - begin)
    return best / _STREAM_BYTES


def _int8_layouts() -> list[str]:
    return [layout for layout in INT8_LAYOUTS if extension().int8_panels_runs(layout)]


def panel_seconds(
    packed: _C.Int8PanelWeight | _C.FloatPanelWeight, layout: str, regime: str
) -> float:
    """Time the product that :meth:`Cost.seconds` predicts.

    Args:
        packed: the weight.
        layout: what it is packed in.
        regime: FEW or MANY.

    Returns:
        Seconds on one panel, one thread, of the product alone: the shortest of several runs with
        made-up activations. AMX layouts multiply several whole panels at once; it is the share of
        one.
    """
    is_integer = layout in INT8_LAYOUTS
    seconds = extension().int8_panels_seconds if is_integer else extension().float_panels_seconds
    panels = _AMX_PANELS if layout in AMX_LAYOUTS and regime == MANY else 1
    return float(seconds(packed, panels, _VECTORS[regime], _REPEATS)) / panels


def _costs(layout: str, weights: list[np.ndarray], units: list[int]) -> dict[str, Cost]:
    is_integer = layout in INT8_LAYOUTS
    pack = extension().int8_panels_pack if is_integer else extension().float_panels_pack
    packed = [pack(w.ctypes.data, _ROWS, _COLUMNS, layout) for w in weights]
    return {
        regime: _fit([panel_seconds(w, layout, regime) for w in packed], units)
        for regime in _VECTORS
    }


def _fit(seconds: list[float], units: list[int]) -> Cost:
    """The line through two measurements; through the origin where units do not differ."""
    if units[0] == units[1]:
        return Cost(per_unit=min(seconds) / units[0], per_row=0.0)
    slope = max((seconds[0] - seconds[1]) / (units[0] - units[1]), 0.0)
    return Cost(per_unit=slope, per_row=max(seconds[1] - slope * units[1], 0.0) / _ROWS)


def _decode(data: dict[str, Any]) -> Costs:
    if data["version"] != VERSION:
        raise ValueError("another version")
    costs = data["costs"]
    if set(costs) != {*_int8_layouts(), *FLOAT_LAYOUTS}:
        raise ValueError("other layouts")
    return {
        layout: {regime: _decode_cost(regimes[regime]) for regime in (FEW, MANY)}
        for layout, regimes in costs.items()
    }


def _decode_cost(data: dict[str, float]) -> Cost:
    cost = Cost(**data)
    # Also false for NaN, which no comparison among layouts could handle.
    if not all(0 <= seconds < math.inf for seconds in astuple(cost)):
        raise ValueError("not seconds")
    return cost


def _write(path: Path, costs: Costs) -> None:
    text = json.dumps(
        {
            "version": VERSION,
            "cpu": _cpu_name(),
            "costs": {
                layout: {regime: asdict(cost) for regime, cost in regimes.items()}
                for layout, regimes in costs.items()
            },
        },
        indent=1,
    )
    write_whole(path, text)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
