"""A checkpoint's linear layers as they are packed; those stated in integers keep these."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..checkpoints import Checkpoint, CheckpointError, QuantizedLinear
from ..formats import CompressionNote, PackedWeight, observe, pack
from ..spec import FLOAT_DTYPES, LinearSpec, Structure, ValueSpec

_FLOATS = {str(dtype).removeprefix("torch."): name for name, dtype in FLOAT_DTYPES.items()}


def linear_shape(checkpoint: Checkpoint, module: str) -> tuple[int, ...]:
    """Sizes of a layer's weight, without reading it."""
    if module in checkpoint.linears:
        return checkpoint.linears[module].shape
    return checkpoint.tensors.shape(_stored(checkpoint, module))


def linear_bias(checkpoint: Checkpoint, module: str) -> Tensor | None:
    """A layer's bias as it is stored, or None.

    Raises:
        CheckpointError: it has not one value an output.
    """
    name = checkpoint.aliases.get(f"{module}.bias", f"{module}.bias")
    if name not in checkpoint.tensors:
        return None
    rows, shape = linear_shape(checkpoint, module)[0], checkpoint.tensors.shape(name)
    if shape != (rows,):
        raise CheckpointError(
            f"{name}: expected {rows} values, one an output of {module}.weight, got shape "
            f"{list(shape)}; the checkpoint is damaged"
        )
    return checkpoint.tensors[name]


def packed_values(checkpoint: Checkpoint, module: str, asked: ValueSpec) -> ValueSpec:
    """What a layer is packed in: what the source states, or else ``asked``.

    Floats beside layers that the source states in integers keep their type.
    """
    if module in checkpoint.linears:
        return checkpoint.linears[module].values
    if not checkpoint.linears:
        return asked
    return ValueSpec(_FLOATS[checkpoint.tensors.dtype(_stored(checkpoint, module))])


def _stored(checkpoint: Checkpoint, module: str) -> str:
    return checkpoint.aliases.get(f"{module}.weight", f"{module}.weight")


def pack_integers(
    linear: QuantizedLinear, structure: Structure | None
) -> tuple[PackedWeight, CompressionNote]:
    """Pack a layer's integers as they are.

    Args:
        linear: the layer.
        structure: what to pack it in; None takes what the zeros show.

    Raises:
        ValueError: the integers do not fit the structure, or the values.
    """
    stored = linear.load()
    # With zero points, what was pruned is not a stored 0.
    shown = (
        Structure("dense")
        if linear.values.zero_points
        else observe(stored.weight, linear.values).structure
    )
    spec = LinearSpec(
        linear.shape, structure or shown, linear.values, linear.activations, linear.outputs
    )
    packed = pack(stored.weight, spec, stored.scales, stored.zero_points)
    nonzeros = int(torch.count_nonzero(stored.weight))
    return packed, CompressionNote(nonzeros=nonzeros, zeroed=0, error=0.0)


def dense_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint by name: floats as they are, integers times their scales."""
    for name in checkpoint.tensors:
        yield name, checkpoint.tensors[name]
    for module, linear in checkpoint.linears.items():
        packed, _ = pack_integers(linear, Structure("dense"))
        yield f"{module}.weight", packed.dequantize()
