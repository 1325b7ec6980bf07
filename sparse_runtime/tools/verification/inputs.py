"""Texts -> batches of token ids that both models read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Text = str | tuple[str, str]
"""One input: a text, or two that the model reads together."""


@dataclass(frozen=True)
class Batch:
    """Padded inputs by argument name, and which texts they are."""

    rows: list[int]
    inputs: dict[str, Tensor]

    @property
    def mask(self) -> Tensor:
        """bool [batch, sequence]: real tokens."""
        return self.inputs["attention_mask"].bool()


class Tokens:
    """All texts as token ids, truncated, in batches of similar length."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int
    ) -> None:
        tokenizer.padding_side = "right"
        self._tokenizer = tokenizer
        self._encoded: list[dict[str, list[int]]] = [
            dict(
                tokenizer(
                    *(text if isinstance(text, tuple) else (text,)),
                    truncation=True,
                    max_length=max_length,
                )
            )
            for text in texts
        ]

    def ids(self, row: int) -> list[int]:
        """Token ids of one text."""
        return self._encoded[row]["input_ids"]

    def by_length(self) -> list[int]:
        """Rows, longest first."""
        return sorted(range(len(self._encoded)), key=lambda row: -len(self.ids(row)))

    def batch(self, rows: Sequence[int], accepted: set[str], device: Any) -> Batch:
        """Some texts as one padded batch, reduced to the arguments that the models take."""
        padded = self._tokenizer.pad(
            [
                {name: ids for name, ids in self._encoded[row].items() if name in accepted}
                for row in rows
            ],
            return_tensors="pt",
        )
        return Batch(list(rows), {name: ids.to(device) for name, ids in padded.items()})

    def batches(self, size: int, accepted: set[str], device: Any) -> Iterator[Batch]:
        """Every text once."""
        order = self.by_length()
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size], accepted, device)


def accepted_inputs(model: PreTrainedModel) -> set[str]:
    """Names of the tokenizer's outputs that a model reads: DistilBERT has no token types."""
    known = {"input_ids", "attention_mask", "token_type_ids"}
    return known & set(inspect.signature(model.forward).parameters)


def longest_input(model_limit: int, usual: int, asked: int | None) -> int:
    """Tokens to truncate at.

    Args:
        model_limit: tokens of the longest sequence that the model runs.
        usual: what the tokenizer or the sentence-transformers pipeline truncates at.
        asked: the caller's limit, or None.

    Raises:
        ValueError: the caller's limit is not positive or above the model's.
    """
    if asked is None:
        return min(model_limit, usual)
    if not 1 <= asked <= model_limit:
        raise ValueError(f"max_length: expected 1 to {model_limit} for this model, got {asked}")
    return asked


def check_texts(texts: Any, pairs: Any, scores: Any) -> None:
    """Raise unless the arguments of verify() are texts, pairs of texts, and a number for each."""
    if texts is not None:
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError(f"texts: expected a list of texts, got {type(texts).__name__}")
        if not texts:
            raise ValueError(
                "texts: expected at least one text, got none; pass None for built-in ones"
            )
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{row}]: expected a text, got {type(text).__name__}")
    if pairs is not None:
        if isinstance(pairs, str) or not isinstance(pairs, Sequence) or not pairs:
            raise ValueError("pairs: expected a list of at least one pair of texts")
        for row, pair in enumerate(pairs):
            two = isinstance(pair, list | tuple) and len(pair) == 2
            if not two or not all(isinstance(text, str) for text in pair):
                raise TypeError(f"pairs[{row}]: expected two texts, got {pair!r}")
    if scores is not None:
        _check_scores(scores, 0 if pairs is None else len(pairs))


def _check_scores(scores: Any, pairs: int) -> None:
    if not isinstance(scores, Sequence) or isinstance(scores, str) or len(scores) != pairs:
        count = len(scores) if isinstance(scores, Sequence) else type(scores).__name__
        raise ValueError(f"scores: expected a number for each of the {pairs} pairs, got {count}")
    for row, score in enumerate(scores):
        # The comparison also refuses NaN.
        if not isinstance(score, int | float) or not -float("inf") < score < float("inf"):
            raise ValueError(f"scores[{row}]: expected a finite number, got {score!r}")
    if len(set(scores)) < 2:
        raise ValueError("scores: expected different numbers, without which there is no order")
