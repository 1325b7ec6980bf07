"""Texts as token numbers, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .augmentation import Copies
from .data import Part
from .seeds import text_generator
from .tokens import tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that a masked LM is not asked for."""

_ROUND_TO = 8


@dataclass(frozen=True)
class TextBatch:
    """A padded batch.

    Attributes:
        inputs: int64 [batch, tokens], as the model's forward takes them.
        indices: int64 [batch], rows of the data.
        labels: int64 or float32 [batch]; of a masked LM int64 [batch, tokens]; None without.
    """

    inputs: dict[str, Tensor]
    indices: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Masking:
    """How a masked LM's tokens are hidden: 80 % masked, 10 % at random, 10 % as they are.

    Attributes:
        probability: share of the tokens that are asked for.
        mask: number of the mask token.
        vocabulary: how many tokens there are.
        special: numbers of tokens that are never asked for.
        seed: of the run.
    """

    probability: float
    mask: int
    vocabulary: int
    special: frozenset[int]
    seed: int

    def apply(self, tokens: Tensor, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Hidden tokens and labels [tokens] of one text; the same whatever its batch is."""
        generator = text_generator(self.seed, epoch, index)
        kind, action = torch.rand(2, len(tokens), generator=generator)
        other = torch.randint(self.vocabulary, tokens.shape, generator=generator)
        ordinary = torch.tensor([int(token) not in self.special for token in tokens])
        asked = (kind < self.probability) & ordinary
        hidden = torch.where(asked & (action < 0.8), self.mask, tokens)
        hidden = torch.where(asked & (action >= 0.9), other, hidden)
        return hidden, torch.where(asked, tokens, IGNORED)


class EncodedTexts(Dataset[Any]):
    """Tokenized rows. An item is asked for by (epoch, row), for masks differ between epochs.

    Args:
        part: the rows.
        tokenizer: of the model.
        max_length: tokens a text is cut to; None is the tokenizer's limit.
        masking: hide tokens and ask for them; None for other tasks.

    Attributes:
        copies: makes copies with other words, which are numbered after the rows, round by round;
            None makes none.
    """

    def __init__(
        self,
        part: Part,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        masking: Masking | None = None,
    ) -> None:
        encoded = tokenized(part, tokenizer, max_length)
        self.columns: dict[str, list[Tensor]] = {
            name: [torch.tensor(row) for row in encoded[name]]
            for name in tokenizer.model_input_names
            if name in encoded
        }
        self.padding = {name: 0 for name in self.columns}
        self.padding["input_ids"] = int(tokenizer.pad_token_id or 0)
        self.limit = int(tokenizer.model_max_length)
        self.masking = masking
        self.copies: Copies | None = None
        self.labels = _label_tensor(part)
        self.lengths = [len(row) for row in self.columns["input_ids"]]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def epoch_lengths(self) -> list[int]:
        """Tokens of all that an epoch holds, the texts that copies are made of for them."""
        rounds = 0 if self.copies is None else self.copies.settings.copies
        return self.lengths * (1 + rounds)

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, int]:
        # Rows are put together in ``collate``, which sees the batch.
        return place

    def first(self, rows: int) -> EncodedTexts:
        """The same texts, the first ``rows`` alone."""
        part = object.__new__(EncodedTexts)
        part.columns = {name: column[:rows] for name, column in self.columns.items()}
        part.padding, part.masking, part.copies = self.padding, self.masking, None
        part.limit = self.limit
        part.labels = None if self.labels is None else self.labels[:rows]
        part.lengths = self.lengths[:rows]
        return part

    def collate(self, places: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """One batch as the trainer wants it: inputs, "indices" and, where there are, "labels"."""
        epoch = places[0][0]
        batch = self.batch([row for _, row in places], epoch)
        labels = {} if batch.labels is None else {"labels": batch.labels}
        return {**batch.inputs, "indices": batch.indices, **labels}

    def batch(
        self, rows: Sequence[int], epoch: int, device: torch.device | str = "cpu"
    ) -> TextBatch:
        """Some rows or copies, padded on the right to a multiple of 8 tokens, at most the limit."""
        made = [self._columns(row, epoch) for row in rows]
        columns = {name: [one[name] for one in made] for name in self.columns}
        rows = [row % len(self) for row in rows]
        labels = None if self.labels is None else self.labels[rows]
        if self.masking is not None:
            pairs = [
                self.masking.apply(tokens, epoch, row)
                for tokens, row in zip(columns["input_ids"], rows, strict=True)
            ]
            columns["input_ids"] = [hidden for hidden, _ in pairs]
            labels = self._padded([asked for _, asked in pairs], IGNORED)
        inputs = {
            name: self._padded(column, self.padding[name]) for name, column in columns.items()
        }
        return TextBatch(
            {name: tensor.to(device) for name, tensor in inputs.items()},
            torch.tensor(rows, device=device),
            None if labels is None else labels.to(device),
        )

    def _columns(self, number: int, epoch: int) -> dict[str, Tensor]:
        if self.copies is not None and number >= len(self):
            return self.copies.make(self.columns, number, epoch)
        return {name: column[number] for name, column in self.columns.items()}

    def in_order(
        self, batch_size: int, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
        """Inputs and row numbers of all rows, the longest first; nothing is masked or random."""
        order = sorted(range(len(self)), key=lambda row: (-self.lengths[row], row))
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            inputs = {
                name: self._padded([column[row] for row in rows], self.padding[name]).to(device)
                for name, column in self.columns.items()
            }
            yield inputs, torch.tensor(rows, device=device)

    def _padded(self, rows: Sequence[Tensor], value: int) -> Tensor:
        # Few lengths: CPU kernels are prepared once for each. But none that has no position.
        longest = max(len(row) for row in rows)
        rounded = -(-longest // _ROUND_TO) * _ROUND_TO
        length = max(longest, min(rounded, self.limit))
        padded = torch.full((len(rows), length), value, dtype=torch.int64)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = row
        return padded


def _label_tensor(part: Part) -> Tensor | None:
    if part.labels is None:
        return None
    whole = all(isinstance(label, int) for label in part.labels)
    return torch.tensor(part.labels, dtype=torch.int64 if whole else torch.float32)
