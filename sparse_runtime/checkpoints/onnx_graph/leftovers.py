"""Tensors of a graph that are no parameter: explained, or refused."""

from __future__ import annotations

import math

from ..draft import Draft
from ..errors import CheckpointError, listed
from .graph import Graph

_WHY = {
    "unread": "no node reads it",
    "sizes": "integers of the graph's own arithmetic",
    "number": "a number of the graph's own arithmetic",
}


def explain_rest(draft: Draft, stored: Graph, graph: Graph, used: set[str]) -> None:
    """Account for every tensor of a file that became no parameter.

    Args:
        draft: gets a reason for each initializer that is left out.
        stored: the graph as it lies in the file.
        graph: without quantized operators.
        used: names of the tensors that the model's parameters are made of.

    Raises:
        CheckpointError: a tensor of floats or of quantized numbers is used, but not as a parameter.
    """
    constants = graph.constants
    scales = {
        leaf
        for node in graph.of("QuantizeLinear", "DequantizeLinear")
        for name in node.inputs[1:]
        if name in constants
        for leaf in constants[name].leaves
    }
    strange = []
    for name, leaf in stored.leaves.items():
        if name in used or name in scales:
            continue
        reason = _reason(stored, name)
        if reason is None:
            strange.append(f"{name} {leaf.dtype} {list(leaf.shape)}")
        elif name in stored.initializers:
            draft.dropped[name] = _WHY[reason]
    if strange:
        raise CheckpointError(
            f"{stored.where}: {len(strange)} tensors are used, but not as a weight, bias, norm or "
            f"table that is known: {listed(strange)}; export the model with dynamic axes and "
            "without optimizations"
        )


def _reason(stored: Graph, name: str) -> str | None:
    leaf = stored.leaves[name]
    if not stored.readers(name) and name not in stored.outputs:
        return "unread"
    if leaf.dtype in ("int64", "int32", "bool"):
        return "sizes"
    return "number" if math.prod(leaf.shape) <= 1 else None
