"""What a model is given: full batches of one length, or real sentences, or random ones as long."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_runtime.benchmarks.sentence_lengths import sentence_lengths
from sparse_runtime.benchmarks.sentences import sentences

_FULL = re.compile(r"(\d+)x(\d+)")
_RAGGED = re.compile(r"(ragged|lengths):(\d+)")


@dataclass(frozen=True)
class Workload:
    """One batch.

    Attributes:
        name: "BATCHxLENGTH", "ragged:BATCH" or "lengths:BATCH".
        inputs: ``input_ids`` and ``attention_mask`` [batch, length].
    """

    name: str
    inputs: dict[str, Tensor]

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.inputs["input_ids"].shape[0]

    @property
    def length(self) -> int:
        """Columns, padding included."""
        return self.inputs["input_ids"].shape[1]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, padding excluded."""
        return [int(length) for length in self.inputs["attention_mask"].sum(1)]

    @property
    def tokens(self) -> int:
        """Tokens, padding excluded."""
        return sum(self.lengths)


def full_batch(batch: int, length: int, vocabulary: int, seed: int = 0) -> Workload:
    """Random tokens without padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (batch, length), generator=generator)
    return Workload(f"{batch}x{length}", {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def ragged_batch(texts: Sequence[str], tokenizer: Any, max_length: int) -> Workload:
    """Sentences, padded to the longest."""
    found = tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    inputs = {name: found[name] for name in ("input_ids", "attention_mask")}
    return Workload(f"ragged:{len(texts)}", inputs)


def random_batch(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> Workload:
    """Random tokens, so many in each row, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(lengths), max(lengths))
    ids = torch.randint(vocabulary, size, generator=generator)
    mask = (torch.arange(size[1]) < torch.tensor(lengths).unsqueeze(1)).to(ids.dtype)
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    return Workload(f"lengths:{len(lengths)}", inputs)


def make_workload(
    text: str, *, vocabulary: int, max_length: int, tokenizer_from: Path | None
) -> Workload | str:
    """Read "8x128", "ragged:32" or "lengths:32".

    Args:
        text: what to make.
        vocabulary: ids lie below it.
        max_length: of one sequence.
        tokenizer_from: directory with the tokenizer of the model, or None.

    Returns:
        The workload, or the reason why ragged sentences cannot be made for this model.

    Raises:
        ValueError: the text is none of these, or a sequence would be too long.
    """
    if match := _FULL.fullmatch(text):
        batch, length = int(match[1]), int(match[2])
        if not (batch >= 1 and 1 <= length <= max_length):
            raise ValueError(
                f"workload {text!r}: expected a batch from 1 and a length from 1 to {max_length}"
            )
        return full_batch(batch, length, vocabulary)
    match = _RAGGED.fullmatch(text)
    if not match or int(match[2]) < 1:
        raise ValueError(
            f"workload {text!r}: expected 'BATCHxLENGTH', 'ragged:BATCH' or 'lengths:BATCH'"
        )
    batch = int(match[2])
    if match[1] == "lengths":
        lengths = [min(length, max_length) for length in sentence_lengths(batch)]
        return random_batch(lengths, vocabulary)
    if tokenizer_from is None:
        return f"{text}: skipped, the model has no tokenizer to read sentences with"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from, local_files_only=True)
    return ragged_batch(sentences(batch).texts, tokenizer, max_length)
