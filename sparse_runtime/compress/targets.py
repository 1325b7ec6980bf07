"""Which linear layers of a transformers encoder are compressed, and which part each one plays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..checkpoints import kind_of, natural_key
from ..checkpoints.errors import listed

Component = Literal["query", "key", "value", "attention_output", "ffn_in", "ffn_out"]

COMPONENTS: tuple[Component, ...] = (
    "query",
    "key",
    "value",
    "attention_output",
    "ffn_in",
    "ffn_out",
)

# What follows ".layer.<i>." in BERT, RoBERTa and ELECTRA; in DistilBERT; in MPNet.
_INSIDE: dict[str, Component] = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "intermediate.dense": "ffn_in",
    "output.dense": "ffn_out",
    "attention.q_lin": "query",
    "attention.k_lin": "key",
    "attention.v_lin": "value",
    "attention.out_lin": "attention_output",
    "ffn.lin1": "ffn_in",
    "ffn.lin2": "ffn_out",
    "attention.attn.q": "query",
    "attention.attn.k": "key",
    "attention.attn.v": "value",
    "attention.attn.o": "attention_output",
}
_LAYER = re.compile(
    r"(?P<layer>(?:.*\.)?(?:encoder|transformer)\.layer\.(?P<index>\d+))\.(?P<inside>.+)"
)


@dataclass(frozen=True)
class EncoderLayer:
    """One layer of the encoder's stack.

    Attributes:
        path: name of its module in the model, such as "bert.encoder.layer.0".
        index: its place in the stack, from 0.
        module: the layer itself, which hidden states go through.
        linears: its linear layers by component, all six.
        names: their names in the model by component.
    """

    path: str
    index: int
    module: nn.Module
    linears: Mapping[Component, nn.Linear]
    names: Mapping[Component, str]


def encoder_linears(
    model: nn.Module,
    *,
    pooler: bool = False,
    include: str | None = None,
    exclude: str | None = None,
) -> dict[str, nn.Linear]:
    """The linear layers of an encoder's stack by name: what convert packs, layer 10 after layer 9.

    Args:
        model: a model of transformers, with or without a head, or a module that holds one.
        pooler: add the pooler's linear layer, which Prune Once For All prunes too.
        include: regular expression; only names in which it is found.
        exclude: regular expression; no names in which it is found.

    Raises:
        ValueError: nothing is left; the message lists what there is. Or an expression is none.
    """
    check_patterns(include=include, exclude=exclude)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _is_target(name, module, pooler)
    }
    ordered = {name: found[name] for name in sorted(found, key=natural_key)}
    if not ordered:
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise ValueError(
            f"{type(model).__name__}: expected linear layers in a stack such as "
            f"'encoder.layer.<i>' or 'transformer.layer.<i>', got {listed(linears)}; this "
            "architecture is not supported"
        )
    chosen = {
        name: module
        for name, module in ordered.items()
        if (include is None or re.search(include, name))
        and not (exclude is not None and re.search(exclude, name))
    }
    if not chosen:
        raise ValueError(
            f"include={include!r}, exclude={exclude!r}: no linear layer is left of "
            f"{listed(ordered, 6)}; both are searched for in these names"
        )
    return chosen


def check_patterns(**patterns: str | None) -> None:
    """Refuse what is no regular expression.

    Args:
        patterns: by the name of the argument.

    Raises:
        ValueError: one is none.
    """
    for argument, pattern in patterns.items():
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(
                f"{argument} {pattern!r} (--{argument}): expected a regular expression such as "
                f"'attention', got none: {error}; put \\ before a sign that stands for itself"
            ) from error


def _is_target(name: str, module: nn.Linear, pooler: bool) -> bool:
    if pooler and "pooler" in name.split("."):
        return True
    shape = (module.out_features, module.in_features)
    return kind_of(f"{name}.weight", shape) == "encoder_linear"


def component(name: str) -> Component:
    """The part that a linear layer plays, by its name in BERT, RoBERTa, ELECTRA, DistilBERT, MPNet.

    Raises:
        ValueError: the name is none of an encoder layer of these families.
    """
    match = _LAYER.fullmatch(name)
    found = _INSIDE.get(match["inside"]) if match else None
    if found is None:
        raise ValueError(
            f"{name}: expected a linear layer of an encoder, such as "
            "'encoder.layer.0.attention.self.query'; supported are BERT, RoBERTa, ELECTRA, "
            "DistilBERT and MPNet"
        )
    return found


def layers(model: nn.Module) -> list[EncoderLayer]:
    """The encoder's layers, first to last, each with its six linear layers by component.

    Raises:
        ValueError: there are none, a family is not supported, or a layer lacks a component.
    """
    by_path: dict[str, dict[Component, str]] = {}
    linears = encoder_linears(model)
    for name in linears:
        part = component(name)
        match = _LAYER.fullmatch(name)
        assert match is not None  # component() has refused other names
        by_path.setdefault(match["layer"], {})[part] = name
    result = []
    for path, names in by_path.items():
        missing = [part for part in COMPONENTS if part not in names]
        if missing:
            raise ValueError(
                f"{path}: expected all of {', '.join(COMPONENTS)}, but {', '.join(missing)} is "
                "missing; layers without a half are not supported here"
            )
        result.append(
            EncoderLayer(
                path=path,
                index=int(path.rpartition(".")[2]),
                module=model.get_submodule(path),
                linears={part: linears[names[part]] for part in COMPONENTS},
                names={part: names[part] for part in COMPONENTS},
            )
        )
    return sorted(result, key=lambda layer: layer.index)
