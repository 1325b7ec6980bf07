"""Self-attention whose products take integers."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ...spec import ActivationSpec
from .flow import Attention
from .graph import Graph
from .nodes import Node
from .quantizers import Placed, is_alone, quantizer_of, specification

_SIDES = (("query", "scores", 0), ("key", "scores", 1), ("probabilities", "context", 0))


def find_parts(graph: Graph, attention: Attention, placed: Placed) -> dict[str, ActivationSpec]:
    """The quantizers of one self-attention by attribute of ``QuantizedAttention``.

    Exporters multiply queries and keys with the root of 1 / sqrt(head_size) where transformers
    multiplies their product with all of it. A quantizer behind such a factor is stated for values
    without it: its scale is divided by the factor, and rounded to float32.

    Args:
        graph: without quantized operators (lowering.py).
        attention: the products.
        placed: gets what was found.
    """
    parts: dict[str, ActivationSpec] = {}
    factor = 1.0
    for name, which, side in (*_SIDES, ("value", "context", 1)):
        product = attention.scores if which == "scores" else attention.context
        found, inside, outside = _side(graph, product, product.inputs[side], placed)
        if found is not None:
            parts[name] = _divided(found, inside)
        if which == "scores":
            factor *= inside * outside
    for name, product in (("scores", attention.scores), ("context", attention.context)):
        readers = list(graph.uses(product.outputs[0]))
        if len(readers) != 1 or readers[0][0].op != "QuantizeLinear":
            continue
        node = readers[0][0]
        if is_alone(graph, node) and not (name == "context" and _feeds(graph, node, attention)):
            parts[name] = _divided(specification(graph, node), factor if name == "scores" else 1.0)
            placed.results.add(id(node))
    return parts


def _side(
    graph: Graph, product: Node, value: str, placed: Placed
) -> tuple[ActivationSpec | None, float, float]:
    """(quantizer of a product's side, factors before it, factors behind it)."""
    reader, outside, value = product, 1.0, value
    while (scaled := _scaled(graph, value)) is not None:
        reader, value, number = scaled
        outside *= number
    node = quantizer_of(graph, value)
    if node is None or node.op != "DequantizeLinear":
        return None, 1.0, outside
    quantizer = graph.producers.get(graph.origin(node.inputs[0]))
    if quantizer is None or quantizer.op != "QuantizeLinear":
        return None, 1.0, outside
    placed.reads.add((id(reader), value))
    inside, value = 1.0, quantizer.inputs[0]
    while (scaled := _scaled(graph, value)) is not None:
        _, value, number = scaled
        inside *= number
    return specification(graph, node), inside, outside


def _scaled(graph: Graph, value: str) -> tuple[Node, str, float] | None:
    """(node, what it reads, factor) of a multiplication with one positive number."""
    node = graph.producers.get(graph.origin(value))
    if node is None or node.op not in ("Mul", "Div"):
        return None
    for side in (0, 1) if node.op == "Mul" else (1,):
        constant = graph.constants.get(node.inputs[side])
        if constant is not None and math.prod(constant.shape) == 1:
            number = float(constant.load().item())
            if number > 0:
                factor = number if node.op == "Mul" else 1 / number
                return node, node.inputs[1 - side], factor
    return None


def _divided(spec: ActivationSpec, factor: float) -> ActivationSpec:
    # float32, as every scale of a file.
    return replace(spec, scale=torch.tensor(spec.scale / factor, dtype=torch.float32).item())


def _feeds(graph: Graph, node: Node, attention: Attention) -> bool:
    """Whether a quantizer is the one that the attention's output layer reads."""
    out = attention.roles.get("attention_out")
    if out is None or out.weight.quantized is None:
        return False
    readers = [reader for reader, _ in graph.uses(node.outputs[0])]
    uses = [use for reader in readers for use in graph.uses(reader.outputs[0])]
    return all(use is out.node for use, _ in uses)
