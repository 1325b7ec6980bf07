"""What a checkpoint's layers lose on their way into a packed model (docs/checkpoints.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import QuantizedLinear


@dataclass(frozen=True)
class CroppedLayer:
    """What one layer lost.

    Attributes:
        name: of the layer, such as "bert.encoder.layer.3".
        heads: attention heads removed, by their number in the source.
        neurons: feed-forward neurons removed.
        folded: removed heads and neurons whose constant output went into a bias.
        silent: whether every one gave zeros that nothing read, so that, with a scale a row, all
            other numbers of the network stay what they were to the last bit.
    """

    name: str
    heads: tuple[int, ...]
    neurons: int
    folded: int
    silent: bool


@dataclass
class Crop:
    """Rows and columns that stay, by module; modules that are whole are not in it.

    Attributes:
        rows: int64, ascending.
        columns: int64, ascending.
        biases: float32 [out] of layers that took constants in.
        layers: what each layer lost; those that lost nothing are not in it.
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    layers: list[CroppedLayer] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What each layer lost, as JSON."""
        return {
            layer.name: {"heads": list(layer.heads), "neurons": layer.neurons}
            for layer in self.layers
        }

    def touches(self, module: str) -> bool:
        """Whether the module's weight changes."""
        return module in self.rows or module in self.columns

    def weight(self, module: str, weight: Tensor) -> Tensor:
        """What is left of a weight [out, in]."""
        if module in self.rows:
            weight = weight[self.rows[module]]
        return weight[:, self.columns[module]] if module in self.columns else weight

    def integers(self, module: str, linear: QuantizedLinear) -> QuantizedLinear:
        """What is left of a layer that the source states in integers."""
        if not self.touches(module):
            return linear
        rows, columns = map(torch.arange, linear.shape)
        return linear.select(self.rows.get(module, rows), self.columns.get(module, columns))

    def bias(self, module: str, bias: Tensor | None) -> Tensor | None:
        """What is left of a bias [out], with the constants that it took in."""
        if module in self.biases:
            return self.biases[module]
        return bias if bias is None or module not in self.rows else bias[self.rows[module]]
