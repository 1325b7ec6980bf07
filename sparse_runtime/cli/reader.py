"""Inputs through a packed model with a head, in batches, one row of outputs an input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..encoders import SparseModel
from ..tools.verification.inputs import longest_input
from ..tools.verification.models import load_tokenizer

Input = str | tuple[str, str]
"""A text, or two that are read together."""


@dataclass(frozen=True)
class Row:
    """What the head says about one input.

    Attributes:
        input: the text or texts.
        ids: token ids without padding.
        tokens: the tokens themselves.
        offsets: where each token begins and ends in its text.
        special: whether the tokenizer added the token.
        logits: float32 [labels], or [tokens, labels] where the head reads every token.
    """

    input: Input
    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    special: list[bool]
    logits: Tensor


class Reader:
    """A packed model with a head, and its tokenizer.

    Raises:
        ValueError: the model has no tokenizer, or ``max_length`` is above what it runs.
    """

    def __init__(self, model: SparseModel, batch_size: int, max_length: int | None) -> None:
        directory = model.packed.extra_files
        if directory is None:
            raise ValueError("the packed model has no tokenizer files")
        self.model = model
        self.tokenizer: Any = load_tokenizer(directory)
        self.tokenizer.padding_side = "right"
        self.batch_size = batch_size
        self.max_length = longest_input(self.tokenizer, model.max_length, None, max_length)

    @property
    def labels(self) -> list[str]:
        """Names of the head's labels, in the order of its outputs."""
        names = self.model.config.id2label or {}
        return [str(name) for _, name in sorted(names.items())]

    def rows(self, inputs: Sequence[Input]) -> Iterator[Row]:
        """One row for each input, in their order."""
        order = sorted(range(len(inputs)), key=lambda i: -len("".join(inputs[i])))
        rows: dict[int, Row] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = self._run([inputs[i] for i in chosen])
            rows |= dict(zip(chosen, batch, strict=True))
        return (rows[i] for i in range(len(inputs)))

    def _run(self, inputs: list[Input]) -> Iterator[Row]:
        encoded = self.tokenizer(
            inputs,
            truncation=True,
            max_length=self.max_length,
            padding=True,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        logits = self.model(**self.model_inputs(encoded)).logits.float().cpu()
        for i, each in enumerate(inputs):
            length = int(encoded["attention_mask"][i].sum())
            ids = encoded["input_ids"][i, :length].tolist()
            yield Row(
                input=each,
                ids=ids,
                tokens=self.tokenizer.convert_ids_to_tokens(ids),
                offsets=[(a, b) for a, b in encoded["offset_mapping"][i, :length].tolist()],
                special=encoded["special_tokens_mask"][i, :length].bool().tolist(),
                logits=logits[i] if logits.ndim == 2 else logits[i, :length],
            )

    def model_inputs(self, encoded: Any) -> dict[str, Tensor]:
        """The tokenizer's tensors that the model reads."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: encoded[name] for name in names if name in encoded}
