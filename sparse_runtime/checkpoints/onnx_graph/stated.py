"""Numbers of the network that both the graph and config.json state: LayerNorm's epsilon, and heads.

The packed model runs with those of config.json, and so does what it is verified against: a graph
that was made with others would give other results, and nothing would show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import CheckpointError
from .flow import Attention
from .graph import Graph
from .linears import GraphLinear
from .nodes import Node
from .path import way

_EPSILON = "layer_norm_eps"
# Families whose code fixes it, whatever config.json says.
_FIXED_EPSILON = {"distilbert": 1e-12}
# ONNX LayerNormalization without the attribute.
_DEFAULT_EPSILON = 1e-5
# What float16 makes of the smallest ones; float32 rounds by far less than a thousandth.
_SAME_EPSILON: dict[str, float] = {"rel_tol": 1e-3, "abs_tol": 2e-7}


def take_epsilon(graph: Graph, config: dict[str, Any]) -> str | None:
    """Compare the epsilon of every LayerNorm with config.json, which gets it where it has none.

    Args:
        graph: without quantized operators (lowering.py).
        config: config.json.

    Returns:
        What was added to config.json, for the reports.

    Raises:
        CheckpointError: they are not one number.
    """
    fixed = _FIXED_EPSILON.get(str(config.get("model_type")))
    stated = config.get(_EPSILON) if fixed is None else fixed
    added = None
    for node, epsilon in _epsilons(graph):
        if stated is None:
            config[_EPSILON] = stated = epsilon
            added = f"{_EPSILON} = {epsilon:.3g}, of {node.title}: config.json does not state it"
        if type(stated) not in (int, float) or math.isclose(stated, epsilon, **_SAME_EPSILON):
            continue
        whose = f"config.json states {_EPSILON} {stated:g}"
        if fixed is not None:
            whose = f"{config['model_type']} models have {fixed:g}"
        if added is not None:
            whose = f"other norms of the graph add {stated:g}"
        raise CheckpointError(
            f"{graph.where}: {node.title}: the LayerNorm adds epsilon {epsilon:.3g}, {whose}; pass "
            "the config.json that belongs to this graph"
        )
    return added


def check_heads(graph: Graph, attentions: Sequence[Attention], config: dict[str, Any]) -> None:
    """Refuse an attention that is cut into heads of another size than config.json states.

    Raises:
        CheckpointError: the sizes differ.
    """
    heads = config.get("num_attention_heads", config.get("n_heads"))
    hidden = config.get("hidden_size", config.get("dim"))
    if type(heads) is not int or type(hidden) is not int or heads < 1:
        return
    for attention in attentions:
        roles = attention.roles
        sides = (
            (roles["query"], attention.scores.inputs[0]),
            (roles["key"], attention.scores.inputs[1]),
            (roles["value"], attention.context.inputs[1]),
        )
        for linear, end in sides:
            found = _head_size(graph, linear, end)
            if found is not None and found[1] * heads != hidden:
                node, size = found
                raise CheckpointError(
                    f"{graph.where}: {node.title}: heads have {size} features, config.json states "
                    f"a hidden size of {hidden} in {heads} heads ({hidden / heads:g} features "
                    "each); pass the config.json that belongs to this graph"
                )


def _epsilons(graph: Graph) -> Iterator[tuple[Node, float]]:
    for node in graph.of("LayerNormalization"):
        yield node, float(node.attributes.get("epsilon", _DEFAULT_EPSILON))
    # Before opset 17: the square root of a mean with a number added.
    for root in graph.of("Sqrt"):
        adding = graph.producers.get(root.inputs[0])
        if adding is None or adding.op != "Add":
            continue
        for number, mean in (adding.inputs, adding.inputs[::-1]):
            made = graph.producers.get(graph.origin(mean))
            constant = graph.constants.get(number)
            is_variance = made is not None and made.op == "ReduceMean"
            if is_variance and constant is not None and math.prod(constant.shape) == 1:
                yield adding, float(constant.load().item())


def _head_size(graph: Graph, linear: GraphLinear, end: str) -> tuple[Node, int] | None:
    """The Reshape to [batch, tokens, heads, features], and features; None where none says it."""
    for node in way(graph, linear.result, end):
        sizes = _sizes(graph, node.input(1)) if node.op == "Reshape" else ()
        if len(sizes) != 4:
            continue
        heads, size = sizes[2:]
        if size is not None and size > 0:
            return node, size
        if heads is not None and heads > 0 and linear.weight.shape[0] % heads == 0:
            return node, linear.weight.shape[0] // heads
    return None


def _sizes(graph: Graph, name: str) -> tuple[int | None, ...]:
    """The numbers of a shape; None for those that depend on the inputs."""
    node = graph.producers.get(name)
    parts = node.inputs if node is not None and node.op == "Concat" else (name,)
    sizes: list[int | None] = []
    for part in parts:
        constant = graph.constants.get(part)
        # The shapes that are looked for have four axes.
        if constant is None or constant.dtype != "int64" or math.prod(constant.shape) > 4:
            sizes.append(None)
        else:
            sizes += constant.load().reshape(-1).tolist()
    return tuple(sizes)
