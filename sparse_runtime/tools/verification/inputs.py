"""Texts -> batches of token ids that both models read."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
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


def longest_input(
    tokenizer: PreTrainedTokenizerBase, model_limit: int, usual: int | None, asked: int | None
) -> int:
    """Tokens to truncate at.

    Args:
        tokenizer: adds special tokens, beside which a text needs room.
        model_limit: tokens of the longest sequence that the model runs.
        usual: what the sentence-transformers pipeline truncates at; None is the tokenizer's limit.
        asked: the caller's limit, or None.

    Raises:
        TypeError: the caller's limit is no integer.
        ValueError: it leaves no room for a text, or is above the model's.
    """
    if asked is None:
        return min(model_limit, usual or tokenizer.model_max_length)
    if type(asked) is not int:
        raise TypeError(f"max_length: expected an integer, got {type(asked).__name__}")
    least = tokenizer.num_special_tokens_to_add() + 1
    if not least <= asked <= model_limit:
        raise ValueError(
            f"max_length: expected {least} to {model_limit} for this model, got {asked}"
        )
    return asked


def check_texts(texts: Any, pairs: Any) -> None:
    """Raise unless the arguments of verify() are texts and pairs of texts."""
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


def read_scores(scores: Any, pairs: Any) -> list[float] | None:
    """The number for each pair, from a list, an array or a tensor; None where there are none.

    Raises:
        TypeError: it is none of these.
        ValueError: there are more or fewer than pairs, one is no finite number, or all are equal.
    """
    if scores is None:
        return None
    if isinstance(scores, str | bytes | Mapping | Set) or not isinstance(scores, Iterable):
        raise TypeError(f"scores: expected a list of numbers, got {type(scores).__name__}")
    # Arrays and tensors hold numbers of their own types.
    numbers = scores.tolist() if hasattr(scores, "tolist") else list(scores)
    expected = 0 if pairs is None else len(pairs)
    if len(numbers) != expected:
        raise ValueError(
            f"scores: expected a number for each of the {expected} pairs, got {len(numbers)}"
        )
    for row, score in enumerate(numbers):
        if not isinstance(score, Real) or not math.isfinite(score):
            raise ValueError(f"scores[{row}]: expected a finite number, got {score!r}")
    if len(set(numbers)) < 2:
        raise ValueError("scores: expected different numbers, without which there is no order")
    return [float(score) for score in numbers]
