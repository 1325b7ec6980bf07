"""Packed linear layers as nodes."""

from __future__ import annotations

from typing import Literal

import torch

from ...formats import PackedWeight
from ...store import PackedLinear
from .builder import Builder

Form = Literal["qdq", "dynamic"]


def write_linear(graph: Builder, x: str, module: str, linear: PackedLinear, form: Form) -> str:
    """Add a layer.

    Integers go into the graph as they are, [in, out] as MatMul takes them, with a scale an output.

    Args:
        graph: gets the nodes.
        x: the input's name.
        module: path of the layer.
        linear: its weight and bias.
        form: "dynamic" writes inputs that are quantized at run time with DynamicQuantizeLinear.

    Raises:
        ValueError: the layer has no such form; names it.
    """
    packed, spec = linear.packed, linear.packed.spec
    if not spec.values.is_integer:
        weight = graph.constant(f"{module}.weight", packed.dequantize().t())
        y = graph.node("MatMul", [x, weight], module)
        return _with_bias(graph, y, module, linear)
    activations = spec.activations
    if activations is not None and activations.scheme == "dynamic":
        if form != "dynamic":
            raise ValueError(
                f"{module}: its input is quantized at run time, token by token, which "
                "QuantizeLinear cannot say; pass form='dynamic', which takes one scale for a whole "
                "batch, or pack the model with static activations"
            )
        y = _dynamic(graph, x, module, packed)
    else:
        x = graph.quantized(x, activations, module, "input")
        names = _integers(graph, module, packed)
        weight = graph.node("DequantizeLinear", names, module, "weight", axis=1)
        y = graph.node("MatMul", [x, weight], module)
    y = _with_bias(graph, y, module, linear)
    return graph.quantized(y, spec.outputs, module, "output")


def _dynamic(graph: Builder, x: str, module: str, packed: PackedWeight) -> str:
    """A product of integers, the input's range found at run time."""
    weight, scale, *zero_points = _integers(graph, module, packed)
    stored, step, zero = graph.nodes("DynamicQuantizeLinear", [x], module, "", 3)
    sums = graph.node("MatMulInteger", [stored, weight, zero, *zero_points], module)
    floats = graph.node("Cast", [sums], module, to=1)
    return graph.node("Mul", [floats, graph.node("Mul", [step, scale], module, "scales")], module)


def _integers(graph: Builder, module: str, packed: PackedWeight) -> list[str]:
    """Names of the weight [in, out], its scales, and its zero points where it has any."""
    if packed.spec.values.granularity == "group":
        raise ValueError(
            f"{module}: scales {packed.spec.values.scales!r} have no form in opset 17, expected "
            "one a row, a chunk or the tensor"
        )
    names = [
        graph.constant(f"{module}.weight_quantized", packed.unpack().t()),
        graph.constant(f"{module}.weight_scale", packed.row_scales().contiguous()),
    ]
    if packed.spec.values.zero_points:
        zeros = packed.row_zero_points().to(torch.int8)
        names.append(graph.constant(f"{module}.weight_zero_point", zeros))
    return names


def _with_bias(graph: Builder, y: str, module: str, linear: PackedLinear) -> str:
    if linear.bias is None:
        return y
    bias = graph.constant(f"{module}.bias", linear.bias.float())
    return graph.node("Add", [y, bias], module)
