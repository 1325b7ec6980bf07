"""Norms and tables of a graph: constants that are no linear layer's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import CheckpointError
from .constants import Constant, folded
from .graph import Graph
from .linears import GraphLinear
from .names import clean, own_module
from .nodes import Node

# Places of the weight and the bias, by operator. Mul and Add are a LayerNorm's of a graph whose
# operators are older than LayerNormalization.
_PLACES = {"LayerNormalization": ((1, "weight"), (2, "bias"))}
_VECTORS = {"Mul": "weight", "Add": "bias"}


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        module: path of its module.
        part: "weight" or "bias".
        value: the data.
        own: the module that its own name states, where that is another one.
    """

    module: str
    part: str
    value: Constant
    own: str | None = None


def find_parameters(graph: Graph, linears: Sequence[GraphLinear]) -> list[Parameter]:
    """Every parameter outside of linear layers, under the module of the node that uses it.

    Raises:
        CheckpointError: neither the node nor the parameter has a name.
    """
    biases = {id(linear.bias_node) for linear in linears if linear.bias_node is not None}
    found = []
    for node in graph.nodes:
        if id(node) in biases or node.outputs[0] in graph.constants:
            continue
        for value, part in _constants(graph, node):
            own = own_module(value)
            if node.op in _VECTORS and math.prod(value.shape[:-1]) > 1:
                raise CheckpointError(
                    f"{graph.where}: {node.title} uses a constant of shape {list(value.shape)} "
                    "where a vector is expected: the exporter has computed what depends on the "
                    "inputs' sizes, such as positions; export with dynamic axes (dynamic_axes=, or "
                    "dynamic_shapes= with dynamo=True) for batch and sequence"
                )
            module = clean(node.scope) if node.scope else own
            if module is None:
                raise CheckpointError(
                    f"{graph.where}: {node.title} uses a {part} of shape {list(value.shape)} that "
                    "has lost its name; export the model without optimizations"
                )
            found.append(Parameter(module, part, value, own if own != module else None))
    return found


def _constants(graph: Graph, node: Node) -> Iterator[tuple[Constant, str]]:
    if node.op == "Gather":
        table = graph.constants.get(node.inputs[0])
        if table is not None and len(table.shape) == 2 and table.dtype not in ("int64", "bool"):
            yield _dequantized(graph, node, table), "weight"
    for place, part in _PLACES.get(node.op, ()):
        if node.input(place) in graph.constants:
            yield graph.constants[node.inputs[place]], part
    if node.op == "LayerNormalization" and not node.input(2) and node.inputs[1] in graph.constants:
        sizes = graph.constants[node.inputs[1]].shape
        # Left out where it is zeros; the model's module has one all the same.
        yield Constant(sizes, "float32", lambda: torch.zeros(sizes)), "bias"
    if node.op in _VECTORS:
        for name in node.inputs:
            value = graph.constants.get(name)
            if value is not None and math.prod(value.shape) > 1 and value.dtype.startswith("float"):
                yield value, _VECTORS[node.op]


def _dequantized(graph: Graph, node: Node, table: Constant) -> Constant:
    """A table of which integers are looked up and dequantized afterwards, as floats."""
    if "int" not in table.dtype:
        return table
    readers = list(graph.uses(node.outputs[0]))
    kinds = {(reader.op, reader.inputs[1:]) for reader, _ in readers}
    if len(kinds) != 1 or readers[0][0].op != "DequantizeLinear":
        raise CheckpointError(
            f"{graph.where}: {node.title} looks up integers that are not dequantized next"
        )
    reader = readers[0][0]
    inputs = ("table", *reader.inputs[1:])
    value = folded(replace(reader, inputs=inputs), graph.constants | {"table": table})
    if value is None:
        raise CheckpointError(f"{graph.where}: {reader.title}: expected a constant scale")
    return value
