"""What is left of layers without the heads and neurons that are zeros, which ``convert`` crops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...formats.crop import LEAST_NEURONS, find_units, positions, removable
from ...kernels.linear.reference import ACTIVATIONS
from ...spec import FUNCTIONS, ValueSpec
from ..targets import Component, EncoderLayer, layers
from .hessian import InputStatistics
from .permutation import head_size_of
from .solvers import SolvedLinear


@dataclass(frozen=True)
class Channels:
    """Rows and columns of one weight that stay; int64, ascending, None for all.

    Attributes:
        rows: outputs.
        columns: inputs.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None

    def of(self, weight: Tensor) -> Tensor:
        """What is left of a weight [out, in]."""
        if self.rows is not None:
            weight = weight[self.rows]
        return weight if self.columns is None else weight[:, self.columns]

    def of_bias(self, bias: Tensor | None) -> Tensor | None:
        """What is left of a bias [out]."""
        return bias if bias is None or self.rows is None else bias[self.rows]

    def fitting(self, values: ValueSpec | None) -> Channels:
        """These, or all, where scales of chunks and groups count rows and columns that go."""
        shared = values is not None and values.granularity in ("chunk", "group")
        return ALL if shared else self

    def inputs(self, name: str, statistics: InputStatistics) -> InputStatistics:
        """What a layer that is left reads, and what its outputs miss."""
        return statistics.narrowed(name, self.rows, self.columns)

    def spread(
        self, solved: SolvedLinear, shape: torch.Size, *, tensor_scale: bool
    ) -> SolvedLinear:
        """A solved weight in its full size, zeros where nothing is left.

        Args:
            solved: what is left, with a scale a row or for all.
            shape: [out, in] of the whole.
            tensor_scale: whether it is one for all.
        """
        if self.rows is None and self.columns is None:
            return solved
        rows = torch.arange(shape[0]) if self.rows is None else self.rows
        columns = torch.arange(shape[1]) if self.columns is None else self.columns
        at = (rows.unsqueeze(1), columns)
        weight, mask = solved.weight.new_zeros(shape), solved.mask.new_zeros(shape)
        weight[at], mask[at] = solved.weight, solved.mask
        scales, shift = solved.scales, solved.bias_shift
        if scales is not None and not tensor_scale:
            scales = scales.new_ones(shape[0]).index_copy(0, rows, scales)
        if shift is not None:
            shift = shift.new_zeros(shape[0]).index_copy(0, rows, shift)
        return replace(solved, weight=weight, mask=mask, scales=scales, bias_shift=shift)


ALL = Channels()


def live_channels(model: nn.Module) -> dict[str, Channels]:
    """What ``convert`` leaves of each linear layer that loses something, by module name.

    Those are heads and neurons whose outputs are zeros; what is only unread is solved, and may be
    read afterwards. A few neurons stay, as there (``formats.crop``).
    """
    config: Any = getattr(model, "config", None)
    function = getattr(config, "hidden_act", None) or getattr(config, "activation", "")
    # Every head has its own column in a table of distances, which stays whole.
    tied = any(name.endswith("relative_attention_bias") for name, _ in model.named_modules())
    found: dict[str, Channels] = {}
    for layer in layers(model):
        size = head_size_of(model)
        if not tied and layer.linears["value"].out_features % size == 0:
            found |= _halves(layer, ("query", "key", "value"), "attention_output", size)
        if FUNCTIONS.get(str(function)) in ACTIVATIONS:
            found |= _halves(layer, ("ffn_in",), "ffn_out", 1)
    return found


def _halves(
    layer: EncoderLayer, producers: tuple[Component, ...], reader: Component, size: int
) -> dict[str, Channels]:
    """The two sides of the units between a layer's producers and their reader."""
    made, read = layer.linears[producers[-1]], layer.linears[reader]
    units = find_units(made.weight, made.bias, read.weight, size=size)
    gone = removable(replace(units, unread=units.zero))
    if not gone.any() or (size == 1 and int(gone.sum()) < LEAST_NEURONS * len(gone)):
        return {}
    kept = positions(~gone, size)
    channels = {layer.names[part]: Channels(rows=kept) for part in producers}
    return {**channels, layer.names[reader]: Channels(columns=kept)}
