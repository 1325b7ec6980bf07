"""Linear layers on the CPU over panels of tokens (docs/kernels): integer and float weights.

A layer is held by a C++ object in the device layout, or layouts, that :mod:`.layouts` chose.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..spec import ActivationSpec
from .calibration import panel_seconds
from .layouts import LayoutChoice, choose_layouts
from .native import address, extension, rows_of, unavailable
from .prepared_op import TracedLinear
from .types import Candidate, LinearRequest, PreparedLinear

if TYPE_CHECKING:
    from .. import _C

ISA = "auto"  # the extension picks the best the machine runs, or what SPARSE_RUNTIME_ISA says
SIGNED_OFFSET = 128  # a signed value q is stored as q + 128 with zero point 128
PANEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Activations that may be computed in float32 inside and rounded at the door."""


class PanelLinear(TracedLinear):
    """One or several layers that read the same input, held by C++.

    Attributes:
        handle: the ``_C.PanelLinear``.
        choices: the device layouts, each with the number of tokens up to which it runs.
    """

    candidate = "cpu.panels"

    def __init__(self, request: LinearRequest) -> None:
        super().__init__(request.name, request.in_features, request.out_features)
        bias = request.stacked_bias()
        weight = stacked_weight(request)
        self.choices = choose_layouts(request, weight)
        activations = request.weights[0].packed.spec.activations
        if activations is None:
            self.handle = _float_handle(request.name, weight, bias, self.choices)
        else:
            self.handle = _int8_handle(request, weight, bias, activations, self.choices)

    @property
    def nbytes(self) -> int:
        """Bytes of the device layouts, scales and bias."""
        return int(self.handle.bytes)

    def run(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        self.check(x, activation, residual)
        tokens = x.shape[0]
        rows = rows_of(x)
        added = None if residual is None else rows_of(residual)
        # Whatever the default type and device are: C++ writes floats to this address.
        y = torch.empty(tokens, self.out_features, dtype=torch.float32, device="cpu")
        if tokens and self.out_features:
            self.handle.apply(
                address(rows),
                rows.stride(0),
                tokens,
                activation or "none",
                address(added),
                0 if added is None else added.stride(0),
                address(y),
                self.out_features,
                torch.get_num_threads(),
                ISA,
                _workspaces(),
            )
        return y if x.dtype == torch.float32 else y.to(x.dtype)


@cache
def _workspaces() -> _C.WorkspacePool:
    """One for all layers: they run one after the other, so each would keep its own in vain."""
    return extension().WorkspacePool()


def stacked_weight(request: LinearRequest) -> Tensor:
    """int8 (quantized inputs) or float32 [all outputs, in], contiguous."""
    if request.is_integer:
        return torch.cat([w.packed.unpack() for w in request.weights]).contiguous()
    return torch.cat([w.packed.dequantize(torch.float32) for w in request.weights]).contiguous()


def _int8_handle(
    request: LinearRequest,
    weight: Tensor,
    bias: Tensor | None,
    activations: ActivationSpec,
    choices: tuple[LayoutChoice, ...],
) -> _C.PanelLinear:
    parts = [w.packed for w in request.weights]
    variants = [(choice.most_tokens, _pack(weight, choice.layout)) for choice in choices]
    scales = torch.cat([part.row_scales() for part in parts]).float().contiguous()
    stacked = request.stacked_outputs()
    outputs = None if stacked is None else torch.stack([part.float() for part in stacked], 1)
    zero_points = None
    if any(part.zero_points is not None for part in parts):
        zero_points = torch.cat([part.row_zero_points() for part in parts]).contiguous()
    return extension().PanelLinear(
        request.name,
        variants,
        address(scales),
        address(bias),
        *_input_scheme(activations),
        address(outputs),
        address(zero_points),
    )


def _input_scheme(activations: ActivationSpec) -> tuple[str, float, int]:
    """Scheme, scale and zero point as C++ has them: everything is stored unsigned."""
    signed = activations.dtype == "int8"
    if activations.scheme == "static":
        return "static", activations.scale, activations.zero_point + SIGNED_OFFSET * signed
    if not signed:
        return "asymmetric", 1.0, 0
    return "symmetric" if activations.narrow_range else "symmetric_full", 1.0, 0


def _float_handle(
    name: str, weight: Tensor, bias: Tensor | None, choices: tuple[LayoutChoice, ...]
) -> _C.PanelLinear:
    variants = [(choice.most_tokens, _pack(weight, choice.layout)) for choice in choices]
    return extension().PanelLinear(name, variants, address(bias))


def _pack(weight: Tensor, layout: str) -> Any:
    """A ``_C.Int8PanelWeight`` or ``_C.FloatPanelWeight``."""
    is_integer = weight.dtype == torch.int8
    pack = extension().int8_panels_pack if is_integer else extension().float_panels_pack
    return pack(address(weight), *weight.shape, layout)


def _measured(weight: Tensor, choice: LayoutChoice) -> float:
    """Seconds of what ``choice.seconds`` predicts."""
    return panel_seconds(_pack(weight, choice.layout), choice.layout, choice.regime)


def _unknown_arithmetic(request: LinearRequest) -> str | None:
    """What the integer kernels do not compute, or None."""
    for values in (weight.packed.spec.values for weight in request.weights):
        if values.granularity == "group":
            return f"sums whole rows of integers, the scales are {values.scales}"
        most = extension().PANEL_MAX_K_ZERO_POINTS
        if values.zero_points and request.in_features > most:
            return f"takes up to {most} inputs with zero points of the weight"
    return None


class CpuPanelsCandidate(Candidate):
    """Every structure and value type, in the device layout that suits its zeros."""

    name: ClassVar[str] = "cpu.panels"
    backend: ClassVar[str] = "cpu"

    def unavailable(self) -> str | None:
        return unavailable()

    def rejects(self, request: LinearRequest) -> str | None:
        if request.device.type != "cpu":
            return f"runs on cpu, the layer is on {request.device.type}"
        if not request.is_integer and request.dtype not in PANEL_DTYPES:
            return f"computes in float32, the activations are {str(request.dtype)[6:]}"
        if request.in_features > extension().PANEL_MAX_K:
            return f"takes up to {extension().PANEL_MAX_K} inputs"
        if not request.in_features or not request.out_features:
            return "the weight is empty"
        return _unknown_arithmetic(request) if request.is_integer else None

    def note(self, request: LinearRequest, *, measure: bool = False) -> str:
        weight = stacked_weight(request)
        lines = [
            choice.explain(_measured(weight, choice) if measure else None)
            for choice in choose_layouts(request, weight)
        ]
        return f"C++ kernels over panels of 64 tokens: {'; '.join(lines)}"

    def prepare(self, request: LinearRequest) -> PreparedLinear:
        return PanelLinear(request)
