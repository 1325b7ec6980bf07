"""Measured times of products, kept in files: this machine's own, and tables that are shipped.

A file is JSON: a version, the machine it was measured on, and a list of timings. One of another
version, or that is not what was written, is not read at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...kernels import cuda_loading
from ..cache_files import cache_folder, write_whole
from .machine import Machine
from .problem import Problem

VERSION = 3
"""Of the file."""

_KERNELS = Path(__file__).parents[2] / "kernels"
SHIPPED = _KERNELS / "tuned"

logger = logging.getLogger(__name__)


class Timing(NamedTuple):
    """One product, measured.

    Attributes:
        problem: kind of product.
        tokens: rows.
        family: which kernel or library.
        config: its configuration, field by field; empty for a library.
        cold: microseconds with the weight in memory, as in a model whose layers take turns.
        warm: microseconds with the weight in L2.
    """

    problem: Problem
    tokens: int
    family: str
    config: tuple[int, ...]
    cold: float
    warm: float


OWN = "this machine's cache"

Key = tuple[Problem, int]


class Timings:
    """The best measured time of each family, by product and number of tokens."""

    def __init__(
        self, timings: Iterable[Timing] = (), source: str = "this machine's cache"
    ) -> None:
        self.source = source
        self._best: dict[Key, dict[str, Timing]] = {}
        for timing in timings:
            self.add(timing)

    def add(self, timing: Timing) -> None:
        """Keep it where it is the family's fastest."""
        families = self._best.setdefault((timing.problem, timing.tokens), {})
        known = families.get(timing.family)
        if known is None or timing.cold < known.cold:
            families[timing.family] = timing

    def of(self, problem: Problem, tokens: int) -> Mapping[str, Timing]:
        """By family; empty where nothing was measured."""
        return self._best.get((problem, tokens), {})

    def replace(self, problem: Problem, tokens: int, timings: Iterable[Timing]) -> None:
        """Forget what was measured of a product, and keep these."""
        self._best.pop((problem, tokens), None)
        for timing in timings:
            self.add(timing)

    def __iter__(self) -> Any:
        return (timing for families in self._best.values() for timing in families.values())

    def __len__(self) -> int:
        return sum(map(len, self._best.values()))


def fingerprint(machine: Machine) -> dict[str, Any]:
    """What a machine's own times depend on: another GPU, library or kernel is measured anew."""
    return {
        "device": machine.name,
        "capability": machine.capability,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "kernels": kernels_digest(),
        "cuda_library": library_identity(),
    }


def cache_file(machine: Machine) -> Path:
    """Where this machine's times are kept.

    Raises:
        OSError: there is no folder for caches.
    """
    text = json.dumps(fingerprint(machine), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_folder() / f"cuda-timings-{digest}.json"


def load(path: Path, machine: Machine, *, exact: bool) -> list[Timing]:
    """The timings of a file; none where it is not there or not for this machine.

    Args:
        path: of the file.
        machine: the GPU that is there.
        exact: whether libraries and kernels must be the same too; else the device alone.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        wanted = fingerprint(machine)
        names = wanted if exact else ("device", "capability")
        if data["version"] != VERSION or any(data["machine"][n] != wanted[n] for n in names):
            return []
        return [_decode(entry) for entry in data["timings"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s is not read, tune again: %s: %s", path, type(error).__name__, error)
        return []


def save(path: Path, machine: Machine, timings: Iterable[Timing]) -> None:
    """Write a file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    entries = [
        {**timing._asdict(), "problem": list(timing.problem), "config": list(timing.config)}
        for timing in timings
    ]
    data = {"version": VERSION, "machine": fingerprint(machine), "timings": entries}
    write_whole(path, json.dumps(data, indent=1))


@cache
def own_timings(machine: Machine) -> Timings:
    """This machine's, read once in a process; :func:`forget` reads them anew."""
    try:
        path = cache_file(machine)
    except OSError:
        return Timings()
    return Timings(load(path, machine, exact=True))


@cache
def shipped_timings(machine: Machine) -> Timings:
    """Those of the package's tables for this GPU, whatever the libraries' versions."""
    timings = Timings(source="the package's table")
    for path in sorted(SHIPPED.glob("*.json")):
        for timing in load(path, machine, exact=False):
            timings.add(timing)
    return timings


def forget() -> None:
    """Read files anew at the next call."""
    own_timings.cache_clear()
    shipped_timings.cache_clear()


@cache
def kernels_digest() -> str:
    """Changes with every Triton kernel's source."""
    digest = hashlib.sha256()
    for path in sorted(_KERNELS.rglob("*.py")):
        digest.update(path.relative_to(_KERNELS).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def library_identity() -> str:
    """Of the hand-written kernels that run here; "" where there are none."""
    library = cuda_loading.load().library
    return "" if library is None else library.identity


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _decode(entry: Mapping[str, Any]) -> Timing:
    dtype, out_features, in_features, structure, density, rest, dynamic = entry["problem"]
    sizes, shares = (int(out_features), int(in_features)), (float(density), float(rest))
    problem = Problem(str(dtype), *sizes, str(structure), *shares, bool(dynamic))
    cold, warm = float(entry["cold"]), float(entry["warm"])
    # Also false for NaN, which no comparison among families could handle.
    if not all(0 < time < math.inf for time in (cold, warm)):
        raise ValueError(f"times {cold} and {warm}: expected microseconds")
    config = tuple(entry["config"])
    if not all(isinstance(field, int) for field in config):  # truth values are integers too
        raise ValueError(f"config {config}: expected integers")
    return Timing(problem, int(entry["tokens"]), str(entry["family"]), config, cold, warm)
