"""Linear layers whose integers and scales a file states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
