"""Weights that a checkpoint holds under two names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# Output layers of masked language models; transformers ties them to the word embeddings.
_TIED_WEIGHT = re.compile(
    r"((cls\.predictions|lm_head)\.decoder|vocab_projector|generator_lm_head)\.weight"
)
_TIED_BIAS = re.compile(r"(cls\.predictions|lm_head)\.decoder\.bias")
_WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"


def find_aliases(
    tensors: Mapping[str, Tensor], shared: Iterable[tuple[str, ...]]
) -> dict[str, str]:
    """Other name -> the name that is kept, for every tensor stored under several names.

    Two names hold one tensor when they share storage in a pickle, or when transformers ties them
    and their bytes are equal. Equal bytes alone say nothing: two biases may both be zero.

    Args:
        tensors: all tensors by name.
        shared: groups of names that share storage.
    """
    aliases: dict[str, str] = {}
    for group in shared:
        kept = next((name for name in group if partner_of(name, tensors) is None), group[0])
        aliases |= {name: kept for name in group if name != kept}
    for name in tensors:
        partner = partner_of(name, tensors)
        if partner is None or name in aliases:
            continue
        if _same_bytes(tensors[name], tensors[partner]):
            aliases[name] = aliases.get(partner, partner)
    return aliases


def partner_of(name: str, names: Iterable[str]) -> str | None:
    """The name among ``names`` that transformers ties ``name`` to, if there is one."""
    if _TIED_WEIGHT.fullmatch(name):
        return next((other for other in names if other.endswith(_WORD_EMBEDDINGS)), None)
    if _TIED_BIAS.fullmatch(name):
        partner = name.replace(".decoder.bias", ".bias")
        return partner if partner in names else None
    return None


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))
