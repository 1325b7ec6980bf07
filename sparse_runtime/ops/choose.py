"""Which candidate runs a layer, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..spec import ActivationSpec
from .registry import BACKENDS, CANDIDATES
from .types import Candidate, LinearRequest, LinearWeight, PreparedLinear, can_fuse


@dataclass(frozen=True)
class Considered:
    """One candidate and why it was not taken; ``reason`` is None for the one that was."""

    candidate: Candidate
    reason: str | None


@dataclass(frozen=True)
class Decision:
    """The chosen candidate for some layers, and every other one with the reason against it."""

    request: LinearRequest
    candidate: Candidate
    considered: tuple[Considered, ...]

    def prepare(self) -> PreparedLinear:
        """Bring the layers into the chosen candidate's layout."""
        return self.candidate.prepare(self.request)

    def explain(self, *, measure: bool = False) -> str:
        """One line for the layers, one for each candidate.

        Args:
            measure: also time what was chosen, some milliseconds on one thread, and show it beside
                the prediction. Only ``cpu.panels`` has times.
        """
        packed = self.request.weights[0].packed
        rows = sum(weight.packed.spec.shape[0] for weight in self.request.weights)
        spec = packed.spec
        lines = [
            f"{self.request.name}: [{rows}, {spec.shape[1]}] {spec.structure} {spec.values.dtype}"
        ]
        for item in self.considered:
            taken = item.reason is None
            text = item.candidate.note(self.request, measure=measure) if taken else item.reason
            lines.append(f"  {'->' if taken else '  '} {item.candidate.name}: {text}")
        return "\n".join(lines)


def choose(
    weights: Sequence[LinearWeight],
    *,
    backend: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    results: ActivationSpec | None = None,
) -> Decision:
    """Choose the first candidate, fastest first, that can run these layers.

    Args:
        weights: layers that read the same input and quantize it alike.
        backend: "auto" takes any candidate; a name takes only that backend's.
        device: where the layers run.
        dtype: the activations' float type.
        results: how the outputs' one reader quantizes them (``LinearRequest.results``).

    Raises:
        ValueError: unknown backend, no layers, or layers that cannot be run as one.
        RuntimeError: no candidate of an explicitly requested backend can run them; lists all.
    """
    check_backend(backend)
    if not weights or not can_fuse(weights):
        raise ValueError(
            "weights: expected layers with the same in_features and the same input quantization, "
            f"got {[weight.name for weight in weights]}"
        )
    request = LinearRequest(tuple(weights), torch.device(device), dtype, results)
    considered: list[Considered] = []
    chosen: Candidate | None = None
    for candidate in CANDIDATES:
        if backend not in ("auto", candidate.backend):
            reason: str | None = f"backend {backend!r} was requested"
        else:
            reason = candidate.unavailable() or candidate.rejects(request)
            if backend == "auto":
                reason = reason or candidate.asked_only(request)
        if reason is None and chosen is not None:
            reason = f"{chosen.name} comes first"
        if reason is None:
            chosen = candidate
        considered.append(Considered(candidate, reason))
    if chosen is None:
        reasons = "; ".join(f"{item.candidate.name}: {item.reason}" for item in considered)
        raise RuntimeError(f"{request.name}: backend {backend!r} cannot run this layer: {reasons}")
    return Decision(request, chosen, tuple(considered))


def check_backend(backend: str) -> None:
    """Raise ValueError for a backend that does not exist."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend {backend!r}: expected 'auto' or one of {', '.join(BACKENDS)}")
