"""A launch to be measured: a variant with made-up operands, and whether it computes the truth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...kernels.linear import reference
from ...kernels.linear.operands import UINT8_OFFSET, Quantized, Target
from .family import Family
from .plan import stride_of
from .stacked import StackedLayers
from .variants import Variant
from .workspaces import workspace_for

Launch = Callable[[], None]

DYNAMIC = "asymmetric"
"""Stands for the dynamic schemes: the most common one, and the one with most to write."""

MOST_STEPS = 2
"""By which a quantized value may differ from the reference's."""


class Trial:
    """One product, ready to be launched again and again.

    Attributes:
        family: what multiplies.
        config: how.
        tokens: rows.
        weight_bytes: of one copy of the weight.
        launch: enqueues the product on the current stream.
    """

    def __init__(
        self, family: Family, config: Any, layers: StackedLayers, packed: Any, tokens: int
    ) -> None:
        """Make operands for ``tokens`` rows; ``packed`` is the family's layout of ``layers``."""
        self.family = family
        self.config = config
        self.tokens = tokens
        self.weight_bytes = int(family.stored_bytes(layers.problem))
        self._layers = layers
        self._packed = packed
        self._epilogue = layers.epilogue._replace(
            out_scale=None, out_zero=None, out_low=None, out_high=None
        )
        self._x = _made_up_input(layers, tokens)
        is_integer = layers.matrix.dtype == torch.int8
        dtype = torch.float32 if is_integer else layers.matrix.dtype
        outputs = layers.matrix.shape[0]
        self._y = torch.empty(tokens, outputs, dtype=dtype, device=layers.matrix.device)
        variant: Variant = family.variant(packed, config, layers)
        self._workspace = workspace_for(self._y.device, *variant.workspace_needs(tokens))
        self._scheme = DYNAMIC if layers.problem.dynamic else "none"
        self._target = Target(floats=self._y, floats_stride=outputs)
        if layers.problem.dynamic:
            self._target = _quantizing(self._target, variant.target_counters(tokens))
        self.launch = self._launch_of(variant)

    def copies(self, count: int) -> list[Launch]:
        """The same product on ``count`` copies of the weight, in places of their own."""
        return [
            self._launch_of(self.family.variant(self._copy(), self.config, self._layers))
            for _ in range(count)
        ]

    def wrong(self) -> str | None:
        """Launch once, and say how the result differs from PyTorch's; None where it does not."""
        self._y.fill_(torch.nan)
        self.launch()
        expected = _expected(self._x, self._layers)
        actual = self._y.float()
        if self._layers.matrix.dtype == torch.int8:
            same = torch.equal(actual, expected)
        else:
            # Sums of normal products differ by their rounding, far below one part in fifty.
            largest = (actual - expected).abs().max()
            same = bool(largest < 0.02 * expected.abs().max())
        if same and self._quantized_right(actual):
            return None
        # What a wrong kernel leaves there, others on this stream would start from.
        self._workspace.counters.zero_()
        return "the result is not PyTorch's"

    def _quantized_right(self, floats: Tensor) -> bool:
        q = self._target.q
        if q is None:
            return True
        expected, _, _ = reference.quantize_rows_asymmetric(floats)
        # Kernels quantize floats that are not rounded to the result's type yet.
        return bool((q.int() + UINT8_OFFSET - expected.int()).abs().max() <= MOST_STEPS)

    def _copy(self) -> Any:
        if not isinstance(self._packed, tuple):
            return self.family.pack(self._layers)
        parts = [part.clone() if isinstance(part, Tensor) else part for part in self._packed]
        return type(self._packed)(*parts)

    def _launch_of(self, variant: Variant) -> Launch:
        operands = (self._x, self._epilogue, None, self._target, self._scheme, self._workspace)
        return partial(variant.launch, *operands)


def _quantizing(target: Target, counters: int) -> Target:
    """``target`` and rows that are quantized by :data:`DYNAMIC`."""
    assert target.floats is not None
    (tokens, outputs), device = target.floats.shape, target.floats.device
    stride = stride_of(outputs)
    q = torch.empty(tokens, stride, dtype=torch.int8, device=device)
    return target._replace(
        q=q[:, :outputs],
        q_stride=stride,
        scale=torch.empty(tokens, device=device),
        zero=torch.empty(tokens, dtype=torch.int32, device=device),
        ranges=torch.zeros(2, tokens, dtype=torch.int32, device=device),
        counters=torch.zeros(max(counters, 1), dtype=torch.int32, device=device),
    )


def _made_up_input(layers: StackedLayers, tokens: int) -> Quantized | Tensor:
    device, inputs = layers.matrix.device, layers.matrix.shape[1]
    # A generator of its own: the user's random numbers stay as they are.
    numbers = torch.Generator(device).manual_seed(tokens)
    if layers.matrix.dtype != torch.int8:
        x = torch.randn(tokens, inputs, device=device, generator=numbers)
        return x.to(layers.matrix.dtype)
    stride = stride_of(inputs)
    size, kind = (tokens, stride), torch.int8
    q = torch.randint(-128, 128, size, device=device, generator=numbers, dtype=kind)
    zero = None
    if layers.epilogue.weight_sum is not None:
        zero = torch.full((tokens,), 3, device=device, dtype=torch.int32)
    return Quantized(q[:, :inputs], stride, torch.ones(tokens, device=device), zero, 1)


def _expected(x: Quantized | Tensor, layers: StackedLayers) -> Tensor:
    """float32 [tokens, out] by PyTorch."""
    epilogue, matrix = layers.epilogue, layers.matrix
    if isinstance(x, Tensor):
        return reference.float_linear(x.float(), matrix.float(), epilogue.bias)
    assert epilogue.weight_scale is not None  # integers have scales
    return reference.integer_linear(
        x.q,
        0 if x.zero is None else x.zero,
        x.scale,
        matrix,
        epilogue.weight_scale,
        epilogue.bias,
        weight_zero_point=epilogue.weight_zero,
    )
