"""One quantized module: integers as they are, float8 and tables as exact floats."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ....spec import ValueSpec
from ...draft import Draft
from ...errors import CheckpointError, listed
from ...quantized import QuantizedLinear, QuantizedValues
from .activations import read_activations
from .schemes import Arguments, Scheme
from .stored import StoredWeight, find_weight, spread
from .targets import is_embedding

_DTYPES = {("int", 4): "int4", ("int", 8): "int8", ("float", 8): "fp32"}


def read_module(draft: Draft, module: str, scheme: Scheme) -> None:
    """Turn a module's tensors into a quantized linear, or into a float weight.

    Raises:
        CheckpointError: tensors are missing, of other shapes than the config says, or left over.
    """
    arguments = _weights_of(scheme, module)
    _drop_order(draft, module, arguments)
    weight = find_weight(draft, module, scheme, arguments)
    table = is_embedding(module)
    if table and (scheme.inputs or scheme.outputs):
        raise CheckpointError(
            f"{_where(scheme)}: quantizes the input or output of the table {module}, which is not "
            "supported; convert the float checkpoint"
        )
    is_integer = arguments.type == "int"
    inputs, outputs = read_activations(draft, module, scheme, integer_weight=is_integer)
    left = draft.names(rf"{re.escape(module)}\.(?!bias$|weight$)[^.]+")
    if left:
        raise CheckpointError(
            f"{draft.where}: {listed(left)} belongs to a quantized module, and its group in "
            "config.json has no place for it; the file and its config.json disagree"
        )
    if table or not is_integer:
        draft.put(f"{module}.weight", weight.shape, torch.float32, lambda: _dequantized(weight))
        return
    linear = QuantizedLinear(
        shape=weight.shape,
        values=ValueSpec.parse(
            _DTYPES["int", arguments.bits],
            _granularity(arguments),
            zero_points=weight.asymmetric,
        ),
        activations=inputs,
        nbytes=weight.nbytes,
        load=lambda: _integers(weight),
        outputs=outputs,
    )
    draft.put_linear(module, linear)


def _weights_of(scheme: Scheme, module: str) -> Arguments:
    arguments = scheme.weights
    if arguments is None:
        raise CheckpointError(
            f"{_where(scheme)}: quantizes the activations of {module} and not its weight, which "
            "is not supported; convert the float checkpoint"
        )
    if arguments.dynamic or (arguments.type, arguments.bits) not in _DTYPES:
        raise CheckpointError(
            f"{_where(scheme)}.weights: expected static integers of 4 or 8 bits or floats of 8, "
            f"got {arguments}; convert the float checkpoint"
        )
    return arguments


def _drop_order(draft: Draft, module: str, arguments: Arguments) -> None:
    """``weight_g_idx``, the group of each input, where it says what no order would say."""
    name = f"{module}.weight_g_idx"
    if name not in draft.tensors:
        return
    groups = draft.tensors[name].load().to(torch.int64)
    size = max(arguments.group_size, 1)
    plain = torch.arange(groups.numel()) // size
    if not (torch.equal(groups, plain) or bool((groups == -1).all())):
        raise CheckpointError(
            f"{name}: the inputs are reordered (actorder), so that those of one scale do not lie "
            "side by side, which cannot be packed; quantize with actorder='static'"
        )
    draft.drop([name], "the inputs are in their own order")


def _integers(weight: StoredWeight) -> QuantizedValues:
    values, scales, zero_points = weight.load()
    return QuantizedValues(
        values.contiguous(),
        scales.flatten(),
        None if zero_points is None else zero_points.flatten(),
    )


def _dequantized(weight: StoredWeight) -> Tensor:
    values, scales, zero_points = weight.load()
    floats = values.to(torch.float32)
    if zero_points is not None:
        floats = floats - spread(zero_points, weight.shape, weight.share)
    return floats * spread(scales, weight.shape, weight.share)


def _granularity(arguments: Arguments) -> str:
    if arguments.strategy == "group":
        return f"group:{arguments.group_size}"
    return {"tensor": "tensor", "channel": "row"}[arguments.strategy]


def _where(scheme: Scheme) -> str:
    return f"quantization_config.config_groups.{scheme.name}"
