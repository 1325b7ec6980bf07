"""Prepared linear layers on CUDA: launched by an encoder's plan, or called as a drop-in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.linear.configs import Workspace
from ...kernels.linear.operands import Quantized, Target
from ..native import rows_of
from ..prepared_op import TracedLinear
from ..types import LinearRequest
from .choosing import Choice
from .inputs import InputQuantizer
from .layer_choice import choices_for
from .machine import machine_of
from .stacked import StackedLayers, stack_layers
from .variants import Variant
from .workspaces import workspace_for


class CudaLinear(TracedLinear):
    """One or several layers that read the same input.

    Attributes:
        activations: how the input must be quantized; None: floats of ``dtype``.
        dtype: the float type of the layers' model, in which floats are multiplied.
        choices: what runs for which numbers of tokens, ascending.
    """

    candidate = "cuda"

    def __init__(self, request: LinearRequest, choices: Sequence[Choice] | None = None) -> None:
        """Bring the layers into their layouts.

        Args:
            request: the layers.
            choices: None takes the fastest by this machine's times.
        """
        super().__init__(request.name, request.in_features, request.out_features)
        layers = stack_layers(request)
        self.activations = request.weights[0].packed.spec.activations
        self.dtype = request.dtype
        choices = choices_for(layers, request.device) if choices is None else choices
        self.choices = tuple(choices)
        self._device = layers.matrix.device
        self._epilogue = layers.epilogue
        self._quantize = (
            None if self.activations is None else InputQuantizer(self.activations, request.device)
        )
        self._packed: dict[str, Any] = {}
        self._variants = [(choice.most_tokens, self._variant(choice, layers)) for choice in choices]

    def _variant(self, choice: Choice, layers: StackedLayers) -> Variant:
        family, config, _ = choice.estimate
        packed = self._packed.get(family.layout)
        if packed is None:
            packed = self._packed[family.layout] = family.pack(layers)
        if config is None:
            machine = machine_of(self._device)
            config = family.configs(packed, layers.problem, choice.regime.tokens, machine)[0]
        return family.variant(packed, config, layers)

    @property
    def nbytes(self) -> int:
        """Bytes on the device: every layout's, and what the epilogue reads."""
        return tensor_bytes(self._epilogue) + sum(map(tensor_bytes, self._packed.values()))

    def variant_for(self, tokens: int) -> Variant:
        """What runs a batch of this size."""
        for most_tokens, variant in self._variants:
            if tokens <= most_tokens:
                return variant
        raise AssertionError("the last choice takes any number of tokens")

    def workspace_needs(self, tokens: int) -> tuple[int, int]:
        """Four-byte elements of partial sums, and counters, of a launch on ``tokens`` rows."""
        return self.variant_for(tokens).workspace_needs(tokens)

    def launches(self, tokens: int, scheme: str) -> int:
        """Kernels that :meth:`launch` enqueues."""
        return self.variant_for(tokens).launches(tokens, scheme)

    def target_counters(self, tokens: int) -> int:
        """Elements of ``Target.counters`` where the result is quantized by a dynamic scheme."""
        return self.variant_for(tokens).target_counters(tokens)

    def launch(
        self,
        x: Quantized | Tensor,
        activation: str | None,
        residual: Tensor | None,
        target: Target,
        scheme: str,
        workspace: Workspace,
    ) -> None:
        """Enqueue the layers on the current stream; checks nothing, may be captured in a graph.

        Args:
            x: the input, quantized as ``activations`` says, or floats [tokens, in] of ``dtype``.
            activation: a key of ``ACTIVATIONS`` (kernels/linear/reference.py) or None.
            residual: float [tokens, out], features side by side, added last; or None.
            target: where the result [tokens, out] goes.
            scheme: how it is quantized, one of ``SCHEMES`` (kernels/linear/operands.py).
            workspace: at least what :meth:`workspace_needs` says.
        """
        tokens = len(x) if isinstance(x, Tensor) else len(x.q)
        epilogue = self._epilogue
        if residual is not None:
            epilogue = epilogue._replace(residual=residual, residual_stride=residual.stride(0))
        variant = self.variant_for(tokens)
        variant.launch(x, epilogue, activation, target, scheme, workspace)

    def check(self, x: Tensor, activation: str | None, residual: Tensor | None) -> None:
        super().check(x, activation, residual)
        if x.device != self._device:
            raise ValueError(
                f"{self.name}: expected x on {self._device}, where the layer is, got {x.device}"
            )

    def run(
        self,
        x: Tensor,
        activation: str | None,
        residual: Tensor | None,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """:meth:`forward`, on a workspace of the caller's where one is given."""
        self.check(x, activation, residual)
        # Integers are computed with in float32; float64 has no kernels, and becomes float32.
        own = x.dtype if self._quantize is not None else self.dtype
        dtype = torch.float32 if own == torch.float64 else own
        y = torch.empty(x.shape[0], self.out_features, dtype=dtype, device=x.device)
        if x.shape[0]:
            rows = rows_of(x, dtype)
            given = rows if self._quantize is None else self._quantize(rows)
            added = None if residual is None else rows_of(residual, dtype)
            target = Target(floats=y, floats_stride=self.out_features)
            space = workspace or workspace_for(x.device, *self.workspace_needs(x.shape[0]))
            self.launch(given, activation, added, target, "none", space)
        return y if y.dtype == x.dtype else y.to(x.dtype)


def tensor_bytes(packed: Any) -> int:
    """Bytes of a named tuple's tensors, or of an object that knows them."""
    if not isinstance(packed, tuple):
        return int(packed.nbytes)
    return sum(part.nbytes for part in packed if isinstance(part, Tensor))
