"""Linear layers with fake-quantized weights, as integers."""

from __future__ import annotations

import torch

from ...spec import ActivationSpec, ValueSpec
from ..draft import LazyTensor
from ..errors import CheckpointError
from ..numbers import finite
from ..quantized import QuantizedLinear, QuantizedValues
from .fake_quant import Quantizer

_VALUES = ValueSpec("int8", "tensor")


def integer_linear(
    name: str,
    weight: LazyTensor,
    quantizer: Quantizer,
    limits: tuple[int, int],
    activations: ActivationSpec | None,
    outputs: ActivationSpec | None,
) -> QuantizedLinear:
    """The layer whose integers are computed when they are asked for.

    Args:
        name: of the weight in the file, for errors.
        weight: float32 [out, in].
        quantizer: of the weight, symmetric.
        limits: smallest and largest integer.
        activations: how the input is quantized.
        outputs: how the output is requantized.

    Raises:
        CheckpointError: the weight is no float32 matrix.
    """
    check_float32(name, weight)
    if len(weight.shape) != 2:
        raise CheckpointError(
            f"{name}: expected a matrix with the weights of a linear layer, got shape "
            f"{list(weight.shape)}; this kind of quantized layer is not supported"
        )

    def load() -> QuantizedValues:
        integers = quantizer.quantize(finite(name, weight.load()), limits).to(torch.int8)
        return QuantizedValues(integers, torch.tensor([quantizer.scale], dtype=torch.float32))

    rows, columns = weight.shape
    return QuantizedLinear(
        shape=(rows, columns),
        values=_VALUES,
        activations=activations,
        nbytes=weight.nbytes + 4,
        load=load,
        outputs=outputs,
    )


def check_float32(name: str, tensor: LazyTensor) -> None:
    """Raise CheckpointError for a tensor whose integers would not be those of the training."""
    if tensor.dtype != "float32":
        raise CheckpointError(
            f"{name}: expected float32, which its integers are computed from, got {tensor.dtype}; "
            "use the checkpoint before it was cast"
        )
