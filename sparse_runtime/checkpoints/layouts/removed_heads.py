"""Heads that were taken out: ``pruned_heads`` of config.json, as nn_pruning's models have it.

Source: huggingface/nn_pruning (arXiv 2109.04838); ``prune_heads`` of transformers before 5, which
has neither the method nor the field any more. Query, key, value and the attention's output are
either cut to the heads that are left, or as large as before with zeros. The feed-forward keeps its
size, with rows and columns of zeros. "Optimized" models have ``layer_norm_type: no_norm`` besides:
each norm is x * weight + bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draft import Draft
from ..errors import CheckpointError
from .base import Layout
from .blocks import (
    Block,
    features_of_a_head,
    find_attention,
    find_stack,
    heads_in_tensors,
    positive,
    read_pruned_heads,
)

_NO_NORM = "no_norm"


def _recognise(draft: Draft) -> str | None:
    found = []
    if draft.config.get("pruned_heads"):
        found.append(f"pruned_heads of {len(draft.config['pruned_heads'])} layers")
    if draft.config.get("layer_norm_type") == _NO_NORM:
        found.append(f"layer_norm_type {_NO_NORM!r}")
    return f"config.json: {' and '.join(found)}" if found else None


def _finalise(draft: Draft) -> None:
    pruned = read_pruned_heads(draft)
    if pruned:
        _check_heads(draft, pruned)
    if draft.config.get("layer_norm_type") == _NO_NORM:
        draft.steps.append("norms take no statistics: each is x * weight + bias")


def _check_heads(draft: Draft, pruned: dict[int, list[int]]) -> None:
    """Compare each layer's tensors with the list; heads of zeros are left for cropping."""
    stack, block = find_stack(draft), find_attention(draft)
    if stack is None or block is None:
        raise CheckpointError(
            f"{draft.where}: config.json lists pruned_heads, but the file has no layers such as "
            "'encoder.layer.0.attention.self.query'; this architecture is not supported"
        )
    heads = positive(draft, "num_attention_heads", "n_heads")
    size = features_of_a_head(draft)
    cut: dict[str, list[int]] = {}
    zeros: list[int] = []
    for i in range(positive(draft, "num_hidden_layers", "n_layers")):
        layer, lost = f"{stack}.{i}", pruned.get(i, [])
        if f"{layer}.attention" in draft.absent:
            cut[str(i)] = lost
            continue
        left = heads_in_tensors(draft, layer, block, size)
        if lost and left == heads:
            _require_zeros(draft, layer, block, lost, size)
            zeros.append(i)
        elif left == heads - len(lost):
            cut |= {str(i): lost} if lost else {}
        else:
            raise CheckpointError(
                f"{layer}: config.json lists pruned_heads {lost} of {heads}, which leaves "
                f"{heads - len(lost)}, but its tensors hold {left}; take config.json and weights "
                "of the same model"
            )
    draft.config["pruned_heads"] = cut
    _report(draft, pruned, cut, zeros)


def _report(
    draft: Draft, pruned: dict[int, list[int]], cut: dict[str, list[int]], zeros: list[int]
) -> None:
    if cut:
        total = sum(map(len, cut.values()))
        draft.steps.append(f"{total} heads of {len(cut)} layers are gone from the tensors already")
    if zeros:
        total = sum(len(pruned[i]) for i in zeros)
        draft.steps.append(
            f"{total} heads of {len(zeros)} layers that pruned_heads lists are zeros, not removed: "
            "no longer listed, cropping removes them"
        )


def _require_zeros(draft: Draft, layer: str, block: Block, lost: list[int], size: int) -> None:
    """Have the output's weight checked when it is read: the listed heads must add nothing."""
    output, value = f"{layer}.{block.after}.weight", f"{layer}.{block.before[-1]}"
    if f"{value}.weight" not in draft.tensors or output not in draft.tensors:
        raise CheckpointError(
            f"{layer}: expected its attention without the heads {lost} that config.json lists in "
            "pruned_heads, got integers of all heads; leave pruned_heads out of config.json"
        )
    rows = [draft.tensors[f"{value}.weight"]]
    rows += [draft.tensors[f"{value}.bias"]] if f"{value}.bias" in draft.tensors else []

    def checked(weight: Tensor) -> Tensor:
        values = [tensor.load() for tensor in rows]
        for head in lost:
            part = slice(head * size, (head + 1) * size)
            if weight[:, part].any() and any(bool(v[part].any()) for v in values):
                raise CheckpointError(
                    f"{layer}: config.json lists head {head} in pruned_heads, but the tensors hold "
                    "all heads, and this one is not zero: neither its values nor what reads them; "
                    "if it belongs to the model, take it off the list"
                )
        return weight

    draft.change(output, getattr(torch, draft.tensors[output].dtype), checked)


LAYOUT = Layout("removed heads (nn_pruning)", _recognise, _finalise)
