"""The candidate "cuda" of :mod:`sparse_runtime.ops.registry`."""

from __future__ import annotations

from typing import ClassVar

from ..types import Candidate, LinearRequest, PreparedLinear
from .device import refuses, unavailable
from .layer_choice import choices_for, describe
from .linear import CudaLinear
from .machine import machine_of
from .problem import DTYPE_NAMES
from .stacked import stack_layers


class CudaCandidate(Candidate):
    """Every structure and value type, on our kernels or a library's."""

    name: ClassVar[str] = "cuda"
    backend: ClassVar[str] = "cuda"

    def unavailable(self) -> str | None:
        return unavailable()

    def rejects(self, request: LinearRequest) -> str | None:
        if reason := refuses(request.device):
            return reason
        if not request.in_features or not request.out_features:
            return "the weight is empty"
        if not request.is_integer:
            if request.dtype not in DTYPE_NAMES:
                return f"multiplies floats up to float32, the activations are {_short(request)}"
            return None
        for values in (weight.packed.spec.values for weight in request.weights):
            if values.granularity == "group":
                return f"sums whole rows of integers, the scales are {values.scales}"
        return None

    def asked_only(self, request: LinearRequest) -> str | None:
        if request.device.type == "cuda":
            return None
        return "Triton interprets its kernels on the CPU, for tests: ask for backend='cuda'"

    def note(self, request: LinearRequest, *, measure: bool = False) -> str:
        layers = stack_layers(request)
        choices = choices_for(layers, request.device)
        machine = machine_of(request.device)
        text = describe(layers.problem, choices, layers.epilogue, machine)
        return f"{_converted(request)}{text}"

    def prepare(self, request: LinearRequest) -> PreparedLinear:
        return CudaLinear(request)


def _converted(request: LinearRequest) -> str:
    """Which values are multiplied as another type than they are stored in."""
    stored = {weight.packed.spec.values.dtype for weight in request.weights}
    own = "int8" if request.is_integer else DTYPE_NAMES[request.dtype]
    changed = sorted(stored - {own})
    if not changed:
        return ""
    return f"{' and '.join(changed)} weights multiplied as {own}; "


def _short(request: LinearRequest) -> str:
    return str(request.dtype).removeprefix("torch.")
