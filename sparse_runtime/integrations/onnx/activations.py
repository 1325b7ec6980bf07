"""Activation functions by the names of the linear kernels (kernels/linear)."""

from __future__ import annotations

import math
from collections.abc import Callable

from .builder import Builder


def activation(graph: Builder, name: str, x: str, module: str) -> str:
    """Add an activation function.

    Raises:
        ValueError: it has no form here.
    """
    if name not in _WRITERS:
        raise ValueError(f"activation {name!r}: expected one of {', '.join(_WRITERS)}")
    return _WRITERS[name](graph, x, module)


def _gelu(graph: Builder, x: str, module: str) -> str:
    """x * (1 + erf(x / sqrt(2))) / 2."""
    root = graph.constant("root_of_2", math.sqrt(2))
    error = graph.node("Erf", [graph.node("Div", [x, root], module)], module)
    return _half(graph, x, error, module)


def _gelu_new(graph: Builder, x: str, module: str) -> str:
    """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3))) / 2."""
    cubic = graph.node("Pow", [x, graph.constant("three", 3.0)], module)
    cubic = graph.node("Mul", [cubic, graph.constant("gelu_cubic", 0.044715)], module, "cubic")
    inner = graph.node("Add", [x, cubic], module, "cubic")
    root = graph.constant("root_of_2_over_pi", math.sqrt(2 / math.pi))
    inner = graph.node("Mul", [inner, root], module, "root")
    return _half(graph, x, graph.node("Tanh", [inner], module), module)


def _half(graph: Builder, x: str, odd: str, module: str) -> str:
    share = graph.node("Add", [odd, graph.constant("one_float", 1.0)], module)
    share = graph.node("Mul", [x, share], module)
    return graph.node("Mul", [share, graph.constant("half", 0.5)], module, "half")


def _silu(graph: Builder, x: str, module: str) -> str:
    return graph.node("Mul", [x, graph.node("Sigmoid", [x], module)], module)


def _plain(op: str) -> Callable[[Builder, str, str], str]:
    return lambda graph, x, module: graph.node(op, [x], module)


_WRITERS: dict[str, Callable[[Builder, str, str], str]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_new,
    "silu": _silu,
    "relu": _plain("Relu"),
    "tanh": _plain("Tanh"),
}
