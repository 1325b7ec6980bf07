"""Prepared linear layers on CUDA: launched by the encoder's plan, or called as a drop-in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.linear.operands import Epilogue, Quantized, Target
from ...kernels.linear.configs import Workspace
from ...spec import ActivationSpec
from ..types import LinearRequest, PreparedLinear
from .inputs import quantize_input
from .stacked import stack_layers
from .variants import Cublas, Variant
from .workspaces import workspace_for


class VariantChoice(NamedTuple):
    """A variant and the largest number of tokens that it is used for."""

    most_tokens: int
    variant: Variant


class CudaLinear(PreparedLinear):
    """One or several layers that read the same input.

    Attributes:
        activations: how the input must be quantized; None: floats of ``dtype``.
        dtype: the float type of the layers' model, in which floats are multiplied.
        choices: ascending in ``most_tokens``; the last takes any number.
    """

    candidate = "cuda"

    def __init__(self, request: LinearRequest) -> None:
        super().__init__(request.name, request.in_features, request.out_features)
        stacked = stack_layers(request)
        self.activations: ActivationSpec | None = request.weights[0].packed.spec.activations
        self.dtype = request.dtype
        self.choices: Sequence[VariantChoice] = (VariantChoice(2**40, Cublas(stacked.matrix)),)
        self._epilogue: Epilogue = stacked.epilogue

    @property
    def nbytes(self) -> int:
        """Bytes on the device: every variant's, and what the epilogue reads."""
        epilogue = sum(t.nbytes for t in self._epilogue if isinstance(t, Tensor))
        return epilogue + sum(choice.variant.nbytes for choice in self.choices)

    def variant_for(self, tokens: int) -> Variant:
        """What runs a batch of this size."""
        for choice in self.choices:
            if tokens <= choice.most_tokens:
                return choice.variant
        raise AssertionError("the last choice takes any number of tokens")

    def workspace_needs(self, tokens: int) -> tuple[int, int]:
        """Four-byte elements of partial sums, and counters, of a launch on ``tokens`` rows."""
        return self.variant_for(tokens).workspace_needs(tokens)

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

    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        self.check(x, activation, residual)
        tokens = len(x)
        dtype = self.dtype if self.activations is None else x.dtype
        if dtype == torch.float64:
            dtype = torch.float32
        y = torch.empty(tokens, self.out_features, dtype=dtype, device=x.device)
        if tokens:
            rows = x.to(dtype).contiguous()
            added = None if residual is None else residual.contiguous()
            given = rows if self.activations is None else quantize_input(rows, self.activations)
            workspace = workspace_for(x.device, *self.workspace_needs(tokens))
            target = Target(floats=y, floats_stride=self.out_features)
            self.launch(given, activation, added, target, "none", workspace)
        return y.to(x.dtype)
