"""Names of the model's modules, from what an exporter has left of them.

Exporters lose the names of weights that they transpose, and let equal tensors share one name. So a
parameter is named by the node that uses it, where that still says its module; a linear layer of the
encoder otherwise by the part that it plays in the graph; and all else by its own name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import CheckpointError, listed
from .constants import Constant
from .flow import Attention, Role
from .linears import GraphLinear

_LAYER = re.compile(r"((?:.*?\.)?(?:encoder|transformer)\.layers?)\.\d+\..+")
_PARAMETER = re.compile(r"(?P<module>.+)\.(weight|bias)(_quantized|_quantize)?")
# What checkpoints call the base model inside of a model with a head.
_BASES = ("bert", "distilbert", "roberta", "mpnet", "electra")
_BERT: dict[Role, str] = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
}
_DISTILBERT: dict[Role, str] = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_out": "attention.out_lin",
    "ffn_in": "ffn.lin1",
    "ffn_out": "ffn.lin2",
}
_MPNET: dict[Role, str] = _BERT | {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "attention_out": "attention.attn.o",
}
_FAMILIES: dict[str, tuple[str, Mapping[Role, str]]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), ("encoder", _BERT)),
    "mpnet": ("encoder", _MPNET),
    "distilbert": ("transformer", _DISTILBERT),
}
# How the names of a feed-forward network's first and second layer end.
FEED_FORWARDS = [(roles["ffn_in"], roles["ffn_out"]) for roles in (_BERT, _DISTILBERT)]


def clean(scope: str) -> str:
    """A module's path without the wrappers of quantization-aware training."""
    return ".".join(part for part in scope.split(".") if part != "module")


def own_module(constant: Constant | None) -> str | None:
    """The module that a parameter's own name states, if it states one."""
    leaves = constant.leaves if constant is not None else ()
    found = {clean(m["module"]) for leaf in leaves if (m := _PARAMETER.fullmatch(leaf))}
    return found.pop() if len(found) == 1 else None


def wrapper_of(modules: Iterable[str]) -> str:
    """What all names of the encoder's layers begin with, the model's own prefix not counted.

    A module that was written to export a model, such as one that returns its first output alone,
    gives every name one part more: "model.bert.encoder.layer.0" has the wrapper "model.".
    """
    stacks = {match[1] for module in modules if (match := _LAYER.fullmatch(module))}
    if len(stacks) != 1:
        return ""
    parts = stacks.pop().split(".")[:-2]
    if parts and parts[-1] in _BASES:
        parts.pop()
    return "".join(f"{part}." for part in parts)


def name_linears(
    linears: Sequence[GraphLinear],
    attentions: Sequence[Attention],
    config: Mapping[str, Any],
    where: str,
) -> list[str]:
    """The module of each linear.

    Raises:
        CheckpointError: a name is lost, the graph's shape contradicts it, or two have one name.
    """
    noted = [_noted(linear) for linear in linears]
    owns = _owns(linears)
    played = _played(linears, attentions, config, [name for name in (*noted, *owns) if name])
    names = []
    for linear, *candidates in zip(linears, noted, played, owns, strict=True):
        if candidates[0] and candidates[1] and candidates[0] != candidates[1]:
            raise CheckpointError(
                f"{where}: {linear.node.title} is named {candidates[0]}, but stands in the graph "
                f"where {candidates[1]} does; it is not the model of config.json"
            )
        names.append(next((name for name in candidates if name), ""))
    _require_all(names, linears, attentions, config, where)
    return names


def _noted(linear: GraphLinear) -> str | None:
    """By the nodes. Quantizing leaves the product without a note, and the addition with it."""
    # A product that several layers share is named after none of them.
    if linear.is_part:
        return None
    scopes = [linear.node.scope, linear.bias_node.scope if linear.bias_node else None]
    return next((clean(scope) for scope in scopes if scope), None)


def _owns(linears: Sequence[GraphLinear]) -> list[str | None]:
    """By names of weights and biases that one linear alone has."""
    found = [
        None if linear.is_part else own_module(linear.weight) or own_module(linear.bias)
        for linear in linears
    ]
    count = Counter(found)
    return [name if count[name] == 1 else None for name in found]


def _played(
    linears: Sequence[GraphLinear],
    attentions: Sequence[Attention],
    config: Mapping[str, Any],
    known: Sequence[str],
) -> list[str | None]:
    """By the part in the graph, where every layer is found."""
    stack, roles = _FAMILIES.get(str(config.get("model_type")), ("", {}))
    if not stack or len(attentions) != _layers(config):
        return [None] * len(linears)
    stacks = {match[1] for name in known if (match := _LAYER.fullmatch(name))}
    base = stacks.pop() if len(stacks) == 1 else f"{stack}.layer"
    names = {
        id(linear): f"{base}.{layer}.{roles[role]}"
        for layer, attention in enumerate(attentions)
        for role, linear in attention.roles.items()
    }
    return [names.get(id(linear)) for linear in linears]


def _layers(config: Mapping[str, Any]) -> Any:
    return config.get("num_hidden_layers", config.get("n_layers"))


def _require_all(
    names: Sequence[str],
    linears: Sequence[GraphLinear],
    attentions: Sequence[Attention],
    config: Mapping[str, Any],
    where: str,
) -> None:
    lost = [linear.node.title for linear, name in zip(linears, names, strict=True) if not name]
    if lost:
        raise CheckpointError(
            f"{where}: {len(lost)} linear layers have lost their names ({listed(lost)}), and the "
            f"graph does not show what they are: it has {len(attentions)} self-attentions of a "
            f"known form, config.json states {_layers(config)} layers; export the model without "
            "optimizations"
        )
    twice = {name for name, count in Counter(names).items() if count > 1}
    if twice:
        raise CheckpointError(
            f"{where}: several linear layers are named {listed(twice)}; expected one each"
        )
