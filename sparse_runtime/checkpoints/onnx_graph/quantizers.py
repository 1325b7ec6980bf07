"""Quantizers of activations: which a packed model has a place for, and which are left over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...spec import ActivationSpec
from ..errors import CheckpointError
from .graph import Graph
from .linears import GraphLinear
from .lowering import DYNAMIC
from .nodes import Node


@dataclass
class Placed:
    """Quantizers that self-attention has a place for.

    Attributes:
        reads: (id of a node, value) where one of its products reads what a quantizer gave.
        results: ids of quantizers behind its products.
    """

    reads: set[tuple[int, str]] = field(default_factory=set)
    results: set[int] = field(default_factory=set)


@dataclass
class Quantizers:
    """What quantizes the values of a graph.

    Attributes:
        inputs: static quantizer of a linear's input, by the linear's place.
        outputs: of its output, bias included, and nothing reads what is not requantized.
        dynamic: places of linears whose input is quantized by its own range at run time.
        left: quantizers that none of these and no attention has a place for, and who reads them.
    """

    inputs: dict[int, ActivationSpec] = field(default_factory=dict)
    outputs: dict[int, ActivationSpec] = field(default_factory=dict)
    dynamic: set[int] = field(default_factory=set)
    left: list[str] = field(default_factory=list)


def specification(graph: Graph, node: Node) -> ActivationSpec:
    """What a QuantizeLinear or DequantizeLinear node does to activations.

    Raises:
        CheckpointError: its scale is not one constant number, or its type is not read.
    """
    scale = graph.constants.get(node.inputs[1])
    zero_point = graph.constants.get(node.input(2))
    if scale is None or (node.input(2) and zero_point is None):
        raise CheckpointError(f"{graph.where}: {node.title}: expected a constant scale")
    dtype = "uint8" if zero_point is None else zero_point.dtype
    if dtype not in ("int8", "uint8"):
        raise CheckpointError(
            f"{graph.where}: {node.title}: expected int8 or uint8 activations, got {dtype}"
        )
    number = scale.scalar(f"{graph.where}: {node.title}: scale")
    zero = 0 if zero_point is None else int(zero_point.scalar(f"{node.title}: zero point"))
    try:
        return ActivationSpec("static", "int8" if dtype == "int8" else "uint8", number, zero)
    except ValueError as error:
        raise CheckpointError(f"{graph.where}: {node.title}: {error}") from error


def quantizer_of(graph: Graph, value: str) -> Node | None:
    """The quantizer that a value was read back from: a DequantizeLinear node, or DynamicQDQ."""
    node = graph.producers.get(graph.origin(value))
    return node if node is not None and node.op in ("DequantizeLinear", DYNAMIC) else None


def find_quantizers(graph: Graph, linears: Sequence[GraphLinear], placed: Placed) -> Quantizers:
    """Sort the quantizers of activations.

    Args:
        graph: without quantized operators (lowering.py).
        linears: all linear layers of it.
        placed: what the products of self-attention have a place for.

    Raises:
        CheckpointError: quantizing and dequantizing disagree.
    """
    found = Quantizers()
    readers = {(id(linear.node), linear.source): place for place, linear in enumerate(linears)}
    results = {linear.result: place for place, linear in enumerate(linears)}
    for place, linear in enumerate(linears):
        node = quantizer_of(graph, linear.source)
        if node is None or linear.weight.quantized is None:
            continue
        if node.op == DYNAMIC:
            found.dynamic.add(place)
        else:
            found.inputs[place] = specification(graph, node)
    integer = placed.reads | {key for key, at in readers.items() if at in found.inputs}
    for node in graph.of("QuantizeLinear"):
        elsewhere = [
            sink
            for sink, value in _sinks(graph, node)
            if (id(sink), value) not in integer and not _repeats(graph, sink)
        ]
        if not elsewhere or id(node) in placed.results or _repeats(graph, node):
            continue
        owner = results.get(graph.origin(node.inputs[0]))
        if owner is not None and owner in found.inputs and is_alone(graph, node):
            found.outputs[owner] = specification(graph, node)
        else:
            kinds = ", ".join(sorted({sink.op for sink in elsewhere}))
            found.left.append(f"{node.title}, read by {kinds}")
    for node in graph.of(DYNAMIC):
        uses = ((id(sink), value) for sink, value in graph.uses(node.outputs[0]))
        if any(readers.get(use) not in found.dynamic for use in uses):
            found.left.append(node.title)
    return found


def is_alone(graph: Graph, node: Node) -> bool:
    """Whether all that reads a value reads it through this quantizer."""
    source = graph.origin(node.inputs[0])
    return source not in graph.outputs and all(use is node for use, _ in graph.uses(source))


def _sinks(graph: Graph, node: Node) -> list[tuple[Node, str]]:
    """What computes with a quantizer's values: (node, the value it reads).

    Raises:
        CheckpointError: something computes with the integers, or reads them back another way.
    """
    mine = specification(graph, node)
    found: list[tuple[Node, str]] = []
    for reader, _ in graph.uses(node.outputs[0]):
        if reader.op != "DequantizeLinear" or specification(graph, reader) != mine:
            raise CheckpointError(
                f"{graph.where}: {reader.title}: expected to read back what {node.title} wrote, "
                f"with scale {mine.scale:g} and zero point {mine.zero_point} ({mine.dtype}); the "
                "graph contradicts itself"
            )
        found.extend(graph.uses(reader.outputs[0]))
    return found


def _repeats(graph: Graph, node: Node) -> bool:
    """Whether a quantizer gets what one with the same numbers has given, and so changes nothing."""
    if node.op != "QuantizeLinear":
        return False
    source = graph.origin(node.inputs[0])
    mine = specification(graph, node)
    stored = graph.constants.get(source)
    if stored is not None and stored.quantized is not None:
        table = stored.quantized
        same = table.values.dtype == mine.dtype and table.scale.shape in ((), (1,))
        return same and (table.scale.load().item(), int(table.zeros())) == (
            mine.scale,
            mine.zero_point,
        )
    maker = graph.producers.get(source)
    if maker is None or maker.op != "DequantizeLinear":
        return False
    return specification(graph, maker) == mine
