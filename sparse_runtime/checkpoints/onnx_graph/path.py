"""Axes and types of what flows from one linear layer to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import CheckpointError
from .flow import SIZES, Attention
from .graph import LAYOUT_OPS, Graph
from .linears import GraphLinear
from .nodes import Node

# Axes of [batch, tokens, heads, head_size] in the order in which attention wants them.
_HEADS_FIRST = (0, 2, 1, 3)
_TRANSPOSED = (0, 2, 3, 1)
_UNSPLIT = (0, 1, 2, 3)
# Batch and heads as one axis: the last two change places.
_THREE = {(0, 2, 1): (0, 1, 3, 2)}
# ONNX TensorProto.DataType.
_FLOATS = {1: "float32", 10: "float16", 16: "bfloat16"}
# Their results are places, not numbers of the model.
_PLACES = frozenset({"ArgMax", "ArgMin", "TopK", "NonZero"})


def check_path(
    graph: Graph, linears: Sequence[GraphLinear], attentions: Sequence[Attention]
) -> None:
    """Refuse axes and types on the way of the activations that no encoder has.

    Args:
        graph: without quantized operators (lowering.py).
        linears: its linear layers.
        attentions: its self-attentions.

    Raises:
        CheckpointError: a Transpose in an attention gives another order of axes, or a Cast rounds.
    """
    _check_casts(graph, linears)
    for attention in attentions:
        roles = attention.roles
        ways = [
            (roles["query"].result, attention.scores.inputs[0], _HEADS_FIRST),
            (roles["key"].result, attention.scores.inputs[1], _TRANSPOSED),
            (roles["value"].result, attention.context.inputs[1], _HEADS_FIRST),
        ]
        if "attention_out" in roles:
            source = roles["attention_out"].source
            ways.append((attention.context.outputs[0], source, _HEADS_FIRST))
        for start, end, expected in ways:
            _check_axes(graph, start, end, expected)


def _check_axes(graph: Graph, start: str, end: str, expected: tuple[int, ...]) -> None:
    """The transpositions of one way, one after another."""
    axes: tuple[int, ...] = _UNSPLIT
    nodes = [node for node in way(graph, start, end) if node.op == "Transpose"]
    for node in nodes:
        perm = node.attributes.get("perm")
        given = tuple(perm) if isinstance(perm, (list, tuple)) else ()
        order = _THREE.get(given, given)
        if sorted(order) != list(_UNSPLIT):
            raise CheckpointError(
                f"{graph.where}: {node.title}: expected perm to order the four axes of attention, "
                f"got {list(given)}; export the model again"
            )
        axes = tuple(axes[place] for place in order)
    if axes != expected:
        titles = ", ".join(f"{n.title} perm {list(n.attributes['perm'])}" for n in nodes)
        raise CheckpointError(
            f"{graph.where}: {titles or 'no Transpose'} between {start} and {end}: expected the "
            f"axes {list(expected)} of [batch, tokens, heads, head_size], got {list(axes)}; "
            "export the model again"
        )


def way(graph: Graph, start: str, end: str) -> list[Node]:
    """The nodes from one value to another, in order; none where no way leads there."""
    nodes: list[Node] = []
    reached = _reached(graph, {start})
    if end not in reached:
        return []
    while end != start:
        node = graph.producers[end]
        nodes.append(node)
        end = next(name for name in _read(node) if name in reached)
    return nodes[::-1]


def _check_casts(graph: Graph, linears: Sequence[GraphLinear]) -> None:
    tables = [
        (node.outputs[0], graph.constants[node.inputs[0]].dtype)
        for node in graph.of("Gather")
        if node.inputs[0] in graph.constants
        and len(graph.constants[node.inputs[0]].shape) == 2
        and graph.constants[node.inputs[0]].dtype not in ("int64", "bool")
    ]
    starts = {name for name, _ in tables} | {linear.result for linear in linears}
    own = {"float32", *(dtype for _, dtype in tables), *(one.weight.dtype for one in linears)}
    allowed = {code: name for code, name in _FLOATS.items() if name in own}
    reached = _reached(graph, starts)
    for node in graph.of("Cast"):
        if node.inputs[0] in reached and node.attributes.get("to") not in allowed:
            raise CheckpointError(
                f"{graph.where}: {node.title}: activations are cast to ONNX type "
                f"{node.attributes.get('to')}; expected {' or '.join(allowed.values())}, the "
                "types of the graph's weights; export the model again"
            )


def _reached(graph: Graph, starts: Iterable[str]) -> set[str]:
    """The values that are computed of some others."""
    reached = set(starts)
    for node in graph.nodes:
        if not reached.isdisjoint(_read(node)):
            reached.update(node.outputs)
    return reached


def _read(node: Node) -> tuple[str, ...]:
    """The inputs whose numbers are among what it makes."""
    if node.op in SIZES or node.op in _PLACES:
        return ()
    return node.inputs[:1] if node.op in LAYOUT_OPS else node.inputs
