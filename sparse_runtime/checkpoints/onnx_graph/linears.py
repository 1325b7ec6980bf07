"""The linear layers of a graph: a product with a constant matrix, and the bias behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import CheckpointError
from .constants import Constant, sliced, transposed
from .graph import Graph
from .nodes import Node


@dataclass(frozen=True)
class GraphLinear:
    """One linear layer.

    Attributes:
        node: the product.
        weight: [out, in].
        bias: [out], or None.
        bias_node: the addition, where it is a node of its own.
        source: the value that enters.
        result: the value that leaves, bias included.
        is_part: whether it is a part of the outputs of a product that several layers share.
    """

    node: Node
    weight: Constant
    bias: Constant | None
    bias_node: Node | None
    source: str
    result: str
    is_part: bool = False


def find_linears(graph: Graph) -> list[GraphLinear]:
    """Every product of a value with a constant matrix, in order.

    Args:
        graph: without quantized operators (lowering.py).

    Raises:
        CheckpointError: a Gemm does something else than a linear layer.
    """
    return [part for linear in _products(graph) for part in _parts(graph, linear)]


def _products(graph: Graph) -> Iterator[GraphLinear]:
    for node in graph.of("MatMul", "Gemm"):
        matrix = graph.constants.get(node.inputs[1])
        if matrix is None or len(matrix.shape) != 2:
            continue
        if 0 in matrix.shape:
            raise CheckpointError(
                f"{graph.where}: {node.title}: expected a matrix of weights, got one of shape "
                f"{list(matrix.shape)}; the file is damaged"
            )
        by_row = node.op == "Gemm" and bool(node.attributes.get("transB", 0))
        weight = matrix if by_row else transposed(matrix, (1, 0))
        bias, adding, result = None, None, node.outputs[0]
        if node.op == "Gemm":
            _check_gemm(graph, node)
            bias = graph.constants.get(node.input(2))
            if node.input(2) and bias is None:
                raise CheckpointError(f"{graph.where}: {node.title}: its third input is no bias")
        if bias is None:
            adding = _bias_node(graph, result, weight.shape[0])
        if adding is not None:
            side = 0 if adding.inputs[0] in graph.constants else 1
            bias, result = graph.constants[adding.inputs[side]], adding.outputs[0]
        if bias is not None and bias.shape[-1:] != (weight.shape[0],):
            raise CheckpointError(
                f"{graph.where}: {node.title}: expected a bias of {weight.shape[0]}, one an "
                f"output, got shape {list(bias.shape)}"
            )
        yield GraphLinear(node, weight, bias, adding, node.inputs[0], result)


def _bias_node(graph: Graph, value: str, rows: int) -> Node | None:
    """The addition of one number an output, requantized before or not."""
    reader = graph.only_reader(value)
    for op in ("QuantizeLinear", "DequantizeLinear"):
        if reader is not None and reader.op == op:
            value = reader.outputs[0]
            reader = graph.only_reader(value)
    if reader is None or reader.op != "Add":
        return None
    other = graph.constants.get(reader.inputs[1] if reader.inputs[0] == value else reader.inputs[0])
    if other is None or other.shape[-1:] != (rows,) or math.prod(other.shape) != rows:
        return None
    return reader


def _parts(graph: Graph, linear: GraphLinear) -> Iterator[GraphLinear]:
    """Queries, keys and values that one product computes side by side, as layers of their own."""
    reader = graph.only_reader(linear.result)
    rows = linear.weight.shape[0]
    # Two parts are the start and the end of an answer, which are one layer.
    if reader is None or reader.op != "Split" or len(reader.outputs) != 3:
        yield linear
        return
    if not _is_even(graph, reader, rows):
        raise CheckpointError(
            f"{graph.where}: {reader.title}: expected queries, keys and values of one size along "
            "the last axis"
        )
    size = rows // len(reader.outputs)
    for place, result in enumerate(reader.outputs):
        part = range(place * size, (place + 1) * size)
        bias = None if linear.bias is None else sliced(linear.bias, part)
        weight = sliced(linear.weight, part)
        yield replace(linear, weight=weight, bias=bias, result=result, is_part=True)


def _is_even(graph: Graph, node: Node, rows: int) -> bool:
    """Whether a Split cuts the features into equal parts."""
    # The features are the last of three axes.
    if node.attributes.get("axis", 0) not in (-1, 2) or rows % len(node.outputs):
        return False
    sizes = graph.constants.get(node.input(1))
    even = [rows // len(node.outputs)] * len(node.outputs)
    return not node.input(1) or (sizes is not None and sizes.load().tolist() == even)


def _check_gemm(graph: Graph, node: Node) -> None:
    given = {name: node.attributes.get(name, 1) for name in ("alpha", "beta")}
    if node.attributes.get("transA", 0) or any(value != 1 for value in given.values()):
        raise CheckpointError(
            f"{graph.where}: {node.title}: expected alpha and beta of 1 and transA of 0, got "
            f"{dict(node.attributes)}"
        )
