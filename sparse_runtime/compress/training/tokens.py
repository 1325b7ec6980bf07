"""Tokens of a part's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .data import Part

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


def tokenized(
    part: Part, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> BatchEncoding:
    """Every row, pairs as pairs, cut to ``max_length`` tokens and to the tokenizer's limit."""
    return tokenizer(
        list(part.texts),
        None if part.seconds is None else list(part.seconds),
        truncation=True,
        max_length=None if max_length is None else min(max_length, tokenizer.model_max_length),
        padding=False,
    )
