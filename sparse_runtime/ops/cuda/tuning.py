"""Measuring the ways to run a model's layers, and keeping the times (docs/kernels/cuda_linear.md).

Only when asked: nothing is measured while a model is loaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

import torch

from ..types import LinearRequest
from .choosing import REGIMES, why_not
from .families import FAMILIES
from .family import Family
from .machine import Machine, machine_of
from .problem import Problem
from .stacked import StackedLayers, stack_layers
from .timings import OWN, Timing, Timings, cache_file, forget, own_timings, save
from .trial import Trial

SECONDS = 300.0
"""Time for a whole model, compilation included."""

logger = logging.getLogger(__name__)

Clock = Callable[[], float]


class Timer(Protocol):
    """Measures a launch."""

    def __call__(self, trial: Trial) -> tuple[float, float]:
        """Microseconds with the weight in memory, and with the weight in L2."""


class Failure(NamedTuple):
    """A configuration that does not run, or runs wrong."""

    problem: Problem
    tokens: int
    family: str
    config: Any
    reason: str


@dataclass
class TuningReport:
    """What was measured.

    Attributes:
        products: kinds of products there are.
        timings: of each family's fastest configuration.
        failures: what did not run, and is not used.
        skipped: comparisons that the time did not suffice for, as (problem, tokens).
        path: file that keeps the times; None where it could not be written.
    """

    products: int = 0
    timings: list[Timing] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    skipped: list[tuple[Problem, int]] = field(default_factory=list)
    path: str | None = None


def tune_requests(
    requests: Iterable[LinearRequest],
    *,
    timer: Timer | None = None,
    seconds: float = SECONDS,
    regimes: Sequence[int] = REGIMES,
    clock: Clock = time.monotonic,
) -> TuningReport:
    """Measure every kind of product among these layers, and keep the times in the user's cache.

    Each comparison first takes every family's default configuration, then the others', as long as
    its share of the time lasts. What is known already is measured again.

    Args:
        requests: layers on one device.
        timer: None takes the GPU's own (``timer.graph_microseconds``).
        seconds: no configuration is begun later.
        regimes: numbers of tokens.
        clock: seconds, for ``seconds``.

    Raises:
        ValueError: there are no layers, or they are on several devices.
        RuntimeError: there is no timer for their device.
    """
    requests = list(requests)
    devices = {request.device for request in requests}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices))) or "none"
        raise ValueError(f"layers to tune: expected some on one device, got {found}")
    device = devices.pop()
    machine = machine_of(device)
    search = _Search(machine, timer or _default_timer(device), clock, clock() + seconds)
    kinds: dict[Problem, LinearRequest] = {}
    for request in requests:
        kinds.setdefault(stack_layers(request).problem, request)
    search.report.products = len(kinds)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        comparisons = [(tokens, *kind) for tokens in regimes for kind in kinds.items()]
        for at, (tokens, problem, request) in enumerate(comparisons):
            search.compare(problem, stack_layers(request), tokens, len(comparisons) - at)
    _keep(search.report, machine)
    return search.report


class _Search:
    """The state of one tuning."""

    def __init__(self, machine: Machine, timer: Timer, clock: Clock, end: float) -> None:
        self.report = TuningReport()
        self._machine = machine
        self._timer = timer
        self._clock = clock
        self._end = end

    def compare(self, problem: Problem, layers: StackedLayers, tokens: int, left: int) -> None:
        """Measure all families at one number of tokens; kept only if each had its turn.

        Args:
            problem: the kind of product.
            layers: of this kind.
            tokens: rows.
            left: comparisons that share what is left of the time, this one included.
        """
        now = self._clock()
        until = now + (self._end - now) / left
        least = max((known for known in REGIMES if known < tokens), default=0) + 1
        best: dict[str, Timing] = {}
        for turn, (family, packed, config) in self._turns(problem, layers, tokens, least):
            if self._clock() >= (self._end if turn == 0 else until):
                # A comparison in which some family had no turn says nothing.
                if turn == 0:
                    self.report.skipped.append((problem, tokens))
                    return
                break
            timing = self._measure(problem, layers, tokens, family, packed, config)
            known = best.get(family.name)
            if timing is not None and (known is None or timing.cold < known.cold):
                best[family.name] = timing
        self.report.timings += best.values()

    def _turns(
        self, problem: Problem, layers: StackedLayers, tokens: int, least: int
    ) -> Iterator[tuple[int, tuple[Family, Any, Any]]]:
        """Every family's default configuration, then every family's next, and so on."""
        packed: dict[str, Any] = {}
        lists = []
        for family in FAMILIES:
            refused = why_not(family, problem, layers.epilogue, self._machine) is not None
            if refused or family.least_tokens(problem) > least:
                continue
            try:
                if family.layout not in packed:
                    packed[family.layout] = family.pack(layers)
            except RuntimeError as error:  # a library that this build of PyTorch lacks
                self._fail(problem, tokens, family, None, error)
                continue
            own = packed[family.layout]
            configs = family.configs(own, problem, tokens, self._machine)
            lists.append([(family, own, config) for config in configs])
        for turn, row in enumerate(zip_longest(*lists)):
            yield from ((turn, entry) for entry in row if entry is not None)

    def _measure(
        self,
        problem: Problem,
        layers: StackedLayers,
        tokens: int,
        family: Family,
        packed: Any,
        config: Any,
    ) -> Timing | None:
        reason: str | Exception | None
        try:
            trial = Trial(family, config, layers, packed, tokens)
            reason = trial.wrong()
            if reason is None:
                cold, warm = self._timer(trial)
                fields = () if config is None else tuple(config)
                return Timing(problem, tokens, family.name, fields, cold, warm)
        except Exception as error:  # memory, or what a compiler or a library says: the others go on
            reason = error
        self._fail(problem, tokens, family, config, reason)
        return None

    def _fail(
        self, problem: Problem, tokens: int, family: Family, config: Any, reason: str | Exception
    ) -> None:
        text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
        logger.info("%s %s at %d tokens is not used: %s", family.name, config, tokens, text)
        self.report.failures.append(Failure(problem, tokens, family.name, config, text))


def _default_timer(device: torch.device) -> Timer:
    if device.type != "cuda":
        raise RuntimeError(f"tuning measures kernels on a CUDA device, the layers are on {device}")
    from .timer import graph_microseconds

    return graph_microseconds


def _keep(report: TuningReport, machine: Machine) -> None:
    """Put the new times in the place of the old ones of the same products."""
    forget()  # another process may have written since
    table = own_timings(machine)
    fresh = Timings(report.timings, OWN)
    for problem, tokens in dict.fromkeys((timing.problem, timing.tokens) for timing in fresh):
        table.replace(problem, tokens, fresh.of(problem, tokens).values())
    try:
        path = cache_file(machine)
        save(path, machine, table)
        report.path = str(path)
    except OSError as error:  # a read-only home: the times hold for this process alone
        logger.warning("times not kept: %s", error)
