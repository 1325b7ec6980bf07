"""Copies of texts with other words: more for a teacher to answer, where texts are few.

Source: TinyBERT, Jiao et al., arXiv 1909.10351. There a masked LM and GloVe propose the words; here
they are the nearest in the teacher's own embeddings, among the words of the training texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Part
from .schema import require
from .seeds import text_generator
from .tokens import tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS = 1024


@dataclass(frozen=True)
class Augmentation:
    """Copies of the training texts with other words, which the teacher alone answers.

    Attributes:
        copies: of each text in each epoch, beside the text itself.
        replace: share of the words that are replaced.
        neighbours: how many of the nearest words one is drawn from.
        join: share of the copies that go on with the second half of another text.
    """

    copies: int = 1
    replace: float = 0.3
    neighbours: int = 10
    join: float = 0.0

    def __post_init__(self) -> None:
        fitting = {
            "copies": (self.copies >= 1, "1 or more"),
            "replace": (0 <= self.replace <= 1, "a fraction from 0 to 1"),
            "neighbours": (self.neighbours >= 1, "1 or more"),
            "join": (0 <= self.join <= 1, "a fraction from 0 to 1"),
        }
        for key, (fits, expected) in fitting.items():
            require(**{key: (getattr(self, key), fits, expected)})


class Copies:
    """Makes copies, each a function of the seed, the epoch and its number alone.

    Args:
        settings: of the recipe.
        table: int64 [vocabulary, neighbours], what may stand for a token.
        whole: bool [tokens] for each text, which tokens may be replaced.
        seed: of the run.
    """

    def __init__(
        self, settings: Augmentation, table: Tensor, whole: Sequence[Tensor], seed: int
    ) -> None:
        self.settings = settings
        self.table = table
        self.whole = whole
        self.seed = seed

    def make(
        self, columns: Mapping[str, Sequence[Tensor]], number: int, epoch: int
    ) -> dict[str, Tensor]:
        """One copy, as columns of tokens.

        Args:
            columns: of all texts.
            number: of the copy; text and round of copies are its remainder and quotient.
            epoch: copies differ between epochs.
        """
        generator = text_generator(self.seed, epoch, number)
        count = len(self.whole)
        row = other = number % count
        if float(torch.rand((), generator=generator)) < self.settings.join:
            other = int(torch.randint(count, (), generator=generator))
        made = {name: _joined(column[row], column[other]) for name, column in columns.items()}
        tokens, whole = made["input_ids"], _joined(self.whole[row], self.whole[other])
        chance = torch.rand(len(tokens), generator=generator)
        which = torch.randint(self.table.shape[1], tokens.shape, generator=generator)
        replaced = whole & (chance < self.settings.replace)
        made["input_ids"] = torch.where(replaced, self.table[tokens, which], tokens)
        return made


def nearest(embeddings: Tensor, words: Tensor, count: int) -> Tensor:
    """The nearest words of each word by cosine, itself left out.

    Args:
        embeddings: float [vocabulary, width].
        words: int64 [words], tokens that are words.
        count: neighbours of each.

    Returns:
        int64 [vocabulary, count]; the token itself where it is no word.

    Raises:
        ValueError: there are too few words.
    """
    if len(words) <= count:
        raise ValueError(
            f"augment.neighbours: expected fewer than the texts have words of one token "
            f"({len(words)}), got {count}"
        )
    table = torch.arange(len(embeddings)).unsqueeze(1).repeat(1, count)
    vectors = F.normalize(embeddings[words].float(), dim=1)
    for begin in range(0, len(words), _ROWS):
        cosines = vectors[begin : begin + _ROWS] @ vectors.T
        cosines.diagonal(begin).fill_(-torch.inf)
        table[words[begin : begin + _ROWS]] = words[cosines.topk(count).indices]
    return table


def whole_words(
    part: Part, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[Tensor]:
    """Which tokens of each row are words of their own: no piece of a longer one, not special.

    Raises:
        ValueError: the tokenizer does not say which word a token is of.
    """
    if not tokenizer.is_fast:
        raise ValueError("augment: needs a fast tokenizer, which says which word a token is of")
    encoded = tokenized(part, tokenizer, max_length)
    special = set(tokenizer.all_special_ids)  # the unknown token has a word
    return [
        torch.tensor(_alone(row.word_ids, row.sequence_ids), dtype=torch.bool)
        & torch.tensor([token not in special for token in row.ids], dtype=torch.bool)
        for row in encoded.encodings or []
    ]


def _alone(words: Sequence[int | None], sequences: Sequence[int | None]) -> list[bool]:
    # Pieces of a word are neighbours; one that is cut off at the end counts as whole.
    places = [None if word is None else (s, word) for word, s in zip(words, sequences, strict=True)]
    around = [None, *places, None]
    return [
        place is not None and place not in (around[i], around[i + 2])
        for i, place in enumerate(places)
    ]


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """The first half of one and the second half of the other: special tokens stay at the ends."""
    return torch.cat((first[: len(first) // 2], second[len(second) // 2 :]))
