"""Which linear layer plays which part in an encoder, by the shape of the graph around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from .graph import LAYOUT_OPS, Graph
from .linears import GraphLinear
from .nodes import Node

Role = Literal["query", "key", "value", "attention_out", "ffn_in", "ffn_out"]
_T = TypeVar("_T")
# Sizes of a tensor say nothing of its numbers.
SIZES = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Attention:
    """One self-attention.

    Attributes:
        scores: the product of queries and keys.
        context: the product of probabilities and values.
        roles: its linear layers.
    """

    scores: Node
    context: Node
    roles: dict[Role, GraphLinear]


def find_attentions(graph: Graph, linears: Sequence[GraphLinear]) -> list[Attention]:
    """Every softmax between two products whose sides come from one linear layer each, in order."""
    return _Finder(graph, linears).attentions()


class _Finder:
    def __init__(self, graph: Graph, linears: Sequence[GraphLinear]) -> None:
        self._graph = graph
        self._linears = {linear.result: linear for linear in linears}
        own = {id(linear.node) for linear in linears}
        self._products = {n.outputs[0]: n for n in graph.of("MatMul") if id(n) not in own}
        self._softmaxes = {node.outputs[0]: node for node in graph.of("Softmax")}
        self._sources = {linear.result: self._back(linear.source) for linear in linears}

    def attentions(self) -> list[Attention]:
        found = []
        for product in self._products.values():
            softmax = self._only(product.inputs[0], self._softmaxes)
            scores = softmax and self._only(softmax.inputs[0], self._products)
            if scores is None:
                continue
            sides: dict[Role, GraphLinear | None] = {
                "query": self._only(scores.inputs[0], self._linears),
                "key": self._only(scores.inputs[1], self._linears),
                "value": self._only(product.inputs[1], self._linears),
            }
            roles = {role: linear for role, linear in sides.items() if linear is not None}
            if len(roles) == len(sides):
                found.append(Attention(scores, product, roles | self._behind(product)))
        return found

    def _behind(self, context: Node) -> dict[Role, GraphLinear]:
        """The layer's other linears, as far as they are found."""
        out = self._first({context.outputs[0]})
        if out is None:
            return {}
        for name, sources in self._sources.items():
            # A feed-forward network: two linears of which the second reads the first alone. The
            # first such pair behind this attention is its layer's.
            after = self._first({name})
            if out.result in sources and after is not None:
                return {"attention_out": out, "ffn_in": self._linears[name], "ffn_out": after}
        return {"attention_out": out}

    def _first(self, sources: set[str]) -> GraphLinear | None:
        """The first linear that reads these stops and no others."""
        found = (self._linears[name] for name, own in self._sources.items() if own == sources)
        return next(found, None)

    def _only(self, value: str, kinds: dict[str, _T]) -> _T | None:
        """The stop behind a value, where there is one alone and it is of a kind."""
        stops = self._back(value)
        return kinds.get(next(iter(stops))) if len(stops) == 1 else None

    def _back(self, value: str) -> set[str]:
        """Results of linears, products and softmaxes that a value is computed of directly."""
        stops: set[str] = set()
        seen: set[str] = set()
        waiting = [value]
        while waiting:
            name = waiting.pop()
            if name in seen or name in self._graph.constants:
                continue
            seen.add(name)
            if name in self._linears or name in self._products or name in self._softmaxes:
                stops.add(name)
                continue
            node = self._graph.producers.get(name)
            if node is not None and node.op not in SIZES:
                waiting.extend(node.inputs[:1] if node.op in LAYOUT_OPS else node.inputs)
        return stops
