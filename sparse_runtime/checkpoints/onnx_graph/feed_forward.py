"""The function between the two linear layers of a feed-forward network, which config.json states.

Exporters write one function in many ways (a division by a root or a product with its inverse, a
power or two products). So the nodes are run on a line of numbers, and the results compared: that
also finds a changed constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...spec import FUNCTIONS
from ..errors import CheckpointError, listed
from .graph import Graph
from .linears import GraphLinear
from .lowering import DYNAMIC
from .names import FEED_FORWARDS
from .nodes import Node

# What BERT, RoBERTa, ELECTRA, MPNet and DistilBERT take where config.json says nothing.
_DEFAULT = "gelu"
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
# Both forms of GELU differ by 4.7e-4; constants that were rounded to float16 give up to 1e-4.
_SAME = 2e-4
_OPS: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
    "Sqrt": torch.sqrt,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Reciprocal": torch.reciprocal,
    "Erf": torch.erf,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Relu": torch.relu,
    "FastGelu": _FUNCTIONS["gelu_new"],
}
_OF_TWO = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
# By the attribute "approximate" of ONNX Gelu.
_GELUS = {b"none": _FUNCTIONS["gelu"], b"tanh": _FUNCTIONS["gelu_new"]}
# Operations that keep the order of the features. Types and quantizers are judged elsewhere.
_SAME_NUMBERS = frozenset(
    {"Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "CastLike"}
    | {"QuantizeLinear", "DequantizeLinear", DYNAMIC}
)


def check_feed_forwards(
    graph: Graph, linears: Sequence[GraphLinear], names: Sequence[str], config: Mapping[str, Any]
) -> None:
    """Refuse a graph that computes another activation function than config.json states.

    Args:
        graph: without quantized operators (lowering.py).
        linears: its linear layers.
        names: their modules.
        config: config.json.

    Raises:
        CheckpointError: a function is another one, or none that is known.
    """
    by_name = dict(zip(names, linears, strict=True))
    stated = config.get("hidden_act", config.get("activation", _DEFAULT))
    for first, second in FEED_FORWARDS:
        for name, linear in by_name.items():
            base = name.removesuffix(first)
            after = by_name.get(base + second)
            if base == name or after is None:
                continue
            between = _Between(graph, linear.result, after.source)
            found = between.function()
            if found is None or found != FUNCTIONS.get(str(stated)):
                raise CheckpointError(
                    f"{graph.where}: between {linear.node.title} ({name}) and {after.node.title} "
                    f"({base + second}) the graph computes "
                    f"{found or 'no activation function that is known'} "
                    f"({listed(between.titles, 12)}), config.json states {stated!r}; pass the "
                    "config.json that belongs to this graph, or export the model again"
                )


class _Between:
    """The nodes on the way from one value to another."""

    def __init__(self, graph: Graph, start: str, end: str) -> None:
        self._graph, self._start, self._end = graph, start, end
        found: dict[int, Node] = {}
        self._known, seen, waiting = True, {start}, [end]
        while waiting:
            name = waiting.pop()
            if name in seen or self._is_number(name):
                continue
            seen.add(name)
            node = graph.producers.get(name)
            if node is None:
                self._known = False
                continue
            found[id(node)] = node
            if _operation(node) is None or node.outputs[0] != name:
                # What is behind it says nothing any more.
                self._known = False
                continue
            waiting.extend(_values(node))
        self._nodes = found

    @property
    def titles(self) -> list[str]:
        return [node.title for node in self._nodes.values()]

    def function(self) -> str | None:
        """Its name; None for one that is not known."""
        if not self._known:
            return None
        line = torch.linspace(-6, 6, 97, dtype=torch.float64)
        result = self._run(line)
        distance = {
            name: float((result - function(line)).abs().max())
            for name, function in _FUNCTIONS.items()
        }
        nearest = min(distance, key=lambda name: distance[name])
        return nearest if distance[nearest] <= _SAME else None

    def _run(self, line: Tensor) -> Tensor:
        values = {self._start: line}
        for node in self._graph.nodes:
            operation = _operation(node) if id(node) in self._nodes else None
            if operation is not None:
                read = [values[n] if n in values else self._number(n) for n in _values(node)]
                values[node.outputs[0]] = operation(*read)
        result = values[self._end]
        return result if result.shape == line.shape else torch.full_like(line, math.nan)

    def _is_number(self, name: str) -> bool:
        constant = self._graph.constants.get(name)
        return constant is not None and math.prod(constant.shape) == 1

    def _number(self, name: str) -> Tensor:
        number = self._graph.constants[name].scalar(f"{self._graph.where}: {name}")
        return torch.tensor(number, dtype=torch.float64)


def _operation(node: Node) -> Callable[..., Tensor] | None:
    if len(_values(node)) != (2 if node.op in _OF_TWO else 1) or "" in _values(node):
        return None
    if node.op in _SAME_NUMBERS:
        return _same
    if node.op == "Gelu":
        return _GELUS.get(node.attributes.get("approximate", b"none"))
    return _OPS.get(node.op)


def _same(value: Tensor) -> Tensor:
    return value


def _values(node: Node) -> tuple[str, ...]:
    """The inputs that it computes with: not a scale, a shape or a mode."""
    return node.inputs[:1] if node.op in _SAME_NUMBERS else node.inputs
