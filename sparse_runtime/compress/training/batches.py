"""Which rows make which batch: a function of the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from .encoding import EncodedTexts

_BATCHES_SORTED_TOGETHER = 50


class GroupedBatches(Sampler[list[tuple[int, int]]]):
    """Shuffled batches of (epoch, row), each row once; optionally of texts of like length.

    Args:
        lengths: tokens of each row.
        batch_size: rows of an optimizer step; the last batch may be smaller.
        accumulation: parts that each batch is yielded in, one after another.
        seed: of the run.
        grouped: sort shuffled rows by length within every 50 batches, then shuffle the batches.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        accumulation: int,
        seed: int,
        *,
        grouped: bool,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.part = batch_size // accumulation
        self.seed = seed
        self.grouped = grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole * (self.batch_size // self.part) + -(-rest // self.part)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._batches():
            for begin in range(0, len(batch), self.part):
                yield [(self.epoch, row) for row in batch[begin : begin + self.part]]

    def _batches(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if not self.grouped:
            return _cut(order, self.batch_size)
        together = _BATCHES_SORTED_TOGETHER * self.batch_size
        order = [
            row
            for begin in range(0, len(order), together)
            for row in sorted(order[begin : begin + together], key=self._longest_first)
        ]
        batches = _cut(order, self.batch_size)
        # The trainer counts batches from the start: a smaller one must be the last.
        rest = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[i] for i in shuffled] + rest

    def _longest_first(self, row: int) -> int:
        return -self.lengths[row]


class TrainingLoader(DataLoader[Any]):
    """Batches of texts, padded when they are asked for."""

    def __init__(self, texts: EncodedTexts, batches: GroupedBatches) -> None:
        # Its own generator: a loader otherwise draws from the global one when it begins.
        super().__init__(
            texts,
            batch_sampler=batches,
            collate_fn=texts.collate,
            generator=torch.Generator().manual_seed(0),
        )
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.batches.set_epoch(epoch)


def passes(
    rows: int, batches: int, batch_size: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """So many batches of row numbers: shuffled, each row once, then all of them shuffled anew.

    The last batch of each pass may be smaller.
    """
    waiting: list[list[int]] = []
    for _ in range(batches):
        if not waiting:
            waiting = _cut(torch.randperm(rows, generator=generator).tolist(), batch_size)
        yield waiting.pop(0)


def _cut(order: list[int], size: int) -> list[list[int]]:
    return [order[begin : begin + size] for begin in range(0, len(order), size)]
