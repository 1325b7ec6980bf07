"""Measure which kernels run a model's linear layers fastest on this GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from torch import nn

from ..encoders import SparseModel
from ..layers.module import PackedModule
from ..ops import LinearRequest
from ..ops.cuda.candidate import CudaCandidate
from ..ops.cuda.choosing import REGIMES
from ..ops.cuda.families import DENSE_FAMILIES
from ..ops.cuda.problem import Problem
from ..ops.cuda.timings import Timing
from ..ops.cuda.tuning import SECONDS, TuningReport, tune_requests
from .tables import new_table, shape_text

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class TuneReport:
    """What :func:`tune` measured.

    Attributes:
        device: of the layers.
        found: times, failures and what there was no time for.
    """

    device: str
    found: TuningReport

    def to_dict(self) -> dict[str, Any]:
        """The report for programs; times in microseconds."""
        timings = [
            {
                "product": product_text(timing.problem),
                "tokens": timing.tokens,
                "family": timing.family,
                "config": list(timing.config),
                "weight_in_memory": timing.cold,
                "weight_in_l2": timing.warm,
            }
            for timing in self.found.timings
        ]
        failures = [
            {
                "product": product_text(failure.problem),
                "tokens": failure.tokens,
                "family": failure.family,
                "config": None if failure.config is None else list(failure.config),
                "reason": failure.reason,
            }
            for failure in self.found.failures
        ]
        skipped = [
            {"product": product_text(problem), "tokens": tokens}
            for problem, tokens in self.found.skipped
        ]
        return {
            "device": self.device,
            "path": self.found.path,
            "timings": timings,
            "failures": failures,
            "skipped": skipped,
        }

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        table = new_table(
            f"Fastest on {self.device}, microseconds with the weight in memory",
            ("product", "tokens", "family", "time", "best dense"),
        )
        for key, timings in self._by_product().items():
            problem, tokens = key
            best = min(timings, key=lambda timing: timing.cold)
            dense = [t.cold for t in timings if t.family in DENSE_FAMILIES]
            against = f"{min(dense):.1f}" if dense else "-"
            cells = (str(tokens), best.family, f"{best.cold:.1f}", against)
            table.add_row(product_text(problem), *cells)
        kept = f"kept in {self.found.path}" if self.found.path else "not kept: no cache folder"
        notes = [
            f"{kept}; models loaded from now on use them",
            f"{len(self.found.failures)} configurations did not run or gave wrong results",
            f"{len(self.found.skipped)} comparisons left out: give more --seconds",
        ]
        shown = [notes[0], *(note for note in notes[1:] if not note.startswith("0 "))]
        return Group(table, *(Text(note) for note in shown))

    def _by_product(self) -> dict[tuple[Problem, int], list[Timing]]:
        found: dict[tuple[Problem, int], list[Timing]] = {}
        for timing in self.found.timings:
            found.setdefault((timing.problem, timing.tokens), []).append(timing)
        return found


def tune(
    model: nn.Module, *, seconds: float = SECONDS, tokens: int | Sequence[int] = REGIMES
) -> TuneReport:
    """Measure every way to run a model's packed linear layers on its GPU, and keep the times.

    They are kept in the user's cache, for this GPU and these versions of the kernels and libraries.
    Layers that are prepared from then on are chosen by them: load the model again.

    Args:
        model: a ``SparseModel``, or any module with packed ``Linear`` layers, on a CUDA device.
        seconds: no measurement is begun later; compiling counts.
        tokens: numbers of tokens to compare at, some of ``REGIMES``.

    Raises:
        TypeError: the model is no module.
        ValueError: it has no packed layers that run on CUDA, ``tokens`` are others, or ``seconds``
            is no finite number above 0.
        RuntimeError: there is no GPU to measure on.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected a module, got {type(model).__name__}; load a packed model with "
            "SparseModel.from_pretrained"
        )
    if not isinstance(seconds, (int, float)) or not 0 < seconds < inf:
        raise ValueError(f"seconds {seconds!r}: expected a finite number above 0")
    wanted = [tokens] if isinstance(tokens, int) else list(tokens)
    unknown = sorted(set(wanted) - set(REGIMES))
    if unknown or not wanted:
        raise ValueError(f"tokens {unknown}: expected some of {', '.join(map(str, REGIMES))}")
    candidate = CudaCandidate()
    if reason := candidate.unavailable():
        raise RuntimeError(f"nothing to measure on: {reason}")
    requests = [r for r in _requests(model) if candidate.rejects(r) is None]
    if not requests:
        raise ValueError("model: expected packed linear layers on a CUDA device, found none")
    found = tune_requests(requests, seconds=seconds, regimes=sorted(set(wanted)))
    return TuneReport(str(requests[0].device), found)


def product_text(problem: Problem) -> str:
    """A kind of product in a few words: "int8 2304 × 768 unstructured, density 0.1".

    "rows quantized": by a scale of each row's own, for the next layer.
    """
    size = shape_text((problem.out_features, problem.in_features))
    text = f"{problem.dtype} {size} {problem.structure}"
    if problem.density != 1.0:
        text += f", density {problem.density:g}"
    return f"{text}, rows quantized" if problem.dynamic else text


def _requests(model: nn.Module) -> Iterator[LinearRequest]:
    for module in model.modules():
        if isinstance(module, SparseModel):
            yield from (decision.request for decision in module.decisions)
        elif isinstance(module, PackedModule) and module.prepared is not None:
            yield module.decide().request
