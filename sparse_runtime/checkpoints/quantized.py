"""Linear layers whose integers and scales a file states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ..spec import ActivationSpec, ValueSpec


@dataclass(frozen=True)
class QuantizedValues:
    """A weight as integers.

    Attributes:
        weight: int8 [out, in].
        scales: float32 [``ValueSpec.scale_count(out, in)``].
        zero_points: int8 of the same shape where ``ValueSpec.zero_points``, else None.
    """

    weight: Tensor
    scales: Tensor
    zero_points: Tensor | None = None


@dataclass(frozen=True)
class QuantizedLinear:
    """One linear layer, not read yet; its bias is a plain tensor beside it.

    Attributes:
        shape: (out_features, in_features).
        values: how ``load``'s integers are to be read.
        activations: how the layer's input is quantized; None multiplies in floats.
        nbytes: what the weight takes in the file, scales included.
        load: reads the weight.
        outputs: how the layer's output is quantized again, or None.
    """

    shape: tuple[int, int]
    values: ValueSpec
    activations: ActivationSpec | None
    nbytes: int
    load: Callable[[], QuantizedValues]
    outputs: ActivationSpec | None = None

    def centred(self) -> Tensor:
        """int16 [out, in]: the integers minus their zero points, 0 where the weight is 0."""
        stored = self.load()
        weight = stored.weight.short()
        if stored.zero_points is None:
            return weight
        return weight - self.values.spread(stored.zero_points.short(), *self.shape)

    def select(self, rows: Tensor, columns: Tensor) -> QuantizedLinear:
        """The layer with some of its outputs and inputs, its integers as they are.

        Args:
            rows: int64, ascending; of a chunk that shares a scale all rows or none.
            columns: int64, ascending; of a group that shares a scale all columns or none.
        """

        def of(numbers: Tensor) -> Tensor:
            return self.values.select(numbers, self.shape, rows, columns)

        def load() -> QuantizedValues:
            stored = self.load()
            zero_points = None if stored.zero_points is None else of(stored.zero_points)
            return QuantizedValues(stored.weight[rows][:, columns], of(stored.scales), zero_points)

        return replace(self, shape=(len(rows), len(columns)), load=load)
