"""The halves of an encoder layer by the names that each family gives their modules."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..draft import Draft
from ..errors import CheckpointError, listed


@dataclass(frozen=True)
class Block:
    """Modules of half a layer: ``before`` computes what ``after`` reads, then comes ``norm``."""

    before: tuple[str, ...]
    after: str
    norm: str

    @property
    def linears(self) -> tuple[str, ...]:
        """Its linear layers."""
        return (*self.before, self.after)


BERT_ATTENTION = Block(
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "attention.output.LayerNorm",
)
BERT_FEED_FORWARD = Block(("intermediate.dense",), "output.dense", "output.LayerNorm")
ATTENTION = (
    BERT_ATTENTION,
    Block(
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.out_lin",
        "sa_layer_norm",
    ),
    Block(
        ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        "attention.attn.o",
        "attention.LayerNorm",
    ),
)
FEED_FORWARD = (BERT_FEED_FORWARD, Block(("ffn.lin1",), "ffn.lin2", "output_layer_norm"))

_LAYER = re.compile(r"((?:.*\.)?(?:encoder|transformer)\.layer)\.\d+\.(.+)")


def find_stack(draft: Draft) -> str | None:
    """Full name of the list of layers, such as "bert.encoder.layer"; None where there is none."""
    matches = (_LAYER.fullmatch(name) for name in (*draft.tensors, *draft.linears))
    return next((match[1] for match in matches if match), None)


def find_attention(draft: Draft) -> Block | None:
    """Names of the family's attention; None where no layer has one that is known."""
    matches = (_LAYER.fullmatch(name) for name in (*draft.tensors, *draft.linears))
    inside = {match[2].removesuffix(".weight") for match in matches if match}
    return next((block for block in ATTENTION if inside & {*block.linears}), None)


def shape_of(draft: Draft, module: str) -> tuple[int, ...] | None:
    """Sizes of a linear layer's weight, floats or integers; None where there is none.

    Raises:
        CheckpointError: it is no matrix.
    """
    if module in draft.linears:
        return draft.linears[module].shape
    tensor = draft.tensors.get(f"{module}.weight")
    if tensor is not None and len(tensor.shape) != 2:
        raise CheckpointError(
            f"{module}.weight: expected a matrix, got {list(tensor.shape)}; the file is damaged"
        )
    return None if tensor is None else tensor.shape


def positive(draft: Draft, *keys: str) -> int:
    """The first of several fields of config.json that is there: an integer from 1.

    Raises:
        CheckpointError: none is there, or it is something else.
    """
    value = next((draft.config[key] for key in keys if key in draft.config), None)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"{draft.where}: config.json: {keys[0]}: expected an integer from 1, which its removed "
            f"parts are counted by, got {value!r}"
        )
    return value


def read_pruned_heads(draft: Draft) -> dict[int, list[int]]:
    """``pruned_heads`` of config.json: heads by layer, ascending; layers without any left out.

    Raises:
        CheckpointError: it is not of that form, or lists what the model never had.
    """
    given = draft.config.get("pruned_heads")
    if not given:
        return {}
    heads = positive(draft, "num_attention_heads", "n_heads")
    layers = positive(draft, "num_hidden_layers", "n_layers")
    try:
        found = {int(layer): sorted(set(lost)) for layer, lost in given.items()}
        sound = all(0 <= layer < layers for layer in found) and all(
            type(head) is int and 0 <= head < heads for lost in found.values() for head in lost
        )
    except (AttributeError, TypeError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(
            f"{draft.where}: config.json: pruned_heads: expected lists of heads below {heads} for "
            f"layers below {layers}, got {str(given)[:120]}; it belongs to another model"
        )
    return {layer: lost for layer, lost in sorted(found.items()) if lost}


def features_of_a_head(draft: Draft) -> int:
    """As many as before any head was removed.

    Raises:
        CheckpointError: config.json states sizes that leave none.
    """
    if draft.head_size:
        return draft.head_size
    hidden = positive(draft, "hidden_size", "dim")
    heads = positive(draft, "num_attention_heads", "n_heads")
    if heads > hidden:
        raise CheckpointError(
            f"{draft.where}: config.json: num_attention_heads: expected at most hidden_size, "
            f"{hidden}, got {heads}"
        )
    return hidden // heads


def heads_in_tensors(draft: Draft, layer: str, block: Block, size: int) -> int:
    """The heads, of ``size`` features, that all four matrices of a layer's attention agree on.

    Raises:
        CheckpointError: one is missing, or they do not agree.
    """
    found = {name: shape_of(draft, f"{layer}.{name}") for name in block.linears}
    missing = [name for name, shape in found.items() if shape is None]
    if missing:
        raise CheckpointError(
            f"{layer}: expected {', '.join(block.linears)}, got no {listed(missing)}; the file is "
            "incomplete"
        )
    # Heads are rows of the first three and columns of the last.
    widths = {
        name: shape[name == block.after] for name, shape in found.items() if shape is not None
    }
    width = widths[block.after]
    if {*widths.values()} != {width} or width % size:
        raise CheckpointError(
            f"{layer}: expected one number of heads of {size} features in its attention, got "
            f"{', '.join(f'{name} {count}' for name, count in widths.items())} features; the file "
            "is damaged"
        )
    return width // size
