"""Answers of a question answering model, from contexts of any length."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .reader import Reader

MAX_ANSWER_TOKENS = 30


@dataclass(frozen=True)
class Answer:
    """A part of the context: ``context[start:end]``.

    ``score`` is the product of the probabilities of its first and last token, among all tokens of
    the context that the model read together with them.
    """

    text: str
    score: float
    start: int
    end: int

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON, the text as ``answer``."""
        data = asdict(self)
        return {"answer": data.pop("text"), **data}


def best_answer(reader: Reader, question: str, context: str) -> Answer:
    """The best answer of any window; a context too long for the model is read in several.

    Raises:
        ValueError: the context is empty, or the question leaves no room for it.
    """
    best: Answer | None = None
    encoded = _windows(reader, question, context)
    for i in range(len(encoded["input_ids"])):
        inputs = {name: ids[i : i + 1] for name, ids in reader.model_inputs(encoded).items()}
        output = reader.model(**inputs)
        inside = torch.tensor([part == 1 for part in encoded.sequence_ids(i)])
        if not bool(inside.any()):
            raise ValueError("context: expected a text with the answer, got an empty one")
        first, last, score = _best_span(output.start_logits[0], output.end_logits[0], inside)
        if best is None or score > best.score:
            start = int(encoded["offset_mapping"][i, first, 0])
            end = int(encoded["offset_mapping"][i, last, 1])
            best = Answer(context[start:end], score, start, end)
    if best is None:
        raise ValueError("context: expected a text with the answer, got an empty one")
    return best


def _windows(reader: Reader, question: str, context: str) -> Any:
    """The question with each part of the context, as one padded batch."""
    room = reader.max_length - len(reader.tokenizer(question, "")["input_ids"])
    if room < 1:
        raise ValueError(
            f"question: {reader.max_length - room} tokens leave no room for the context in the "
            f"{reader.max_length} that the model reads; shorten it"
        )
    return reader.tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=reader.max_length,
        # Windows overlap by half, so that an answer is cut in no more than one of two.
        stride=min(room // 2, 128),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=True,
        return_tensors="pt",
    )


def _best_span(starts: Tensor, ends: Tensor, inside: Tensor) -> tuple[int, int, float]:
    """First and last token of the best span within ``inside`` (bool [tokens]), and its score."""
    outside = ~inside
    first = starts.float().cpu().masked_fill(outside, -torch.inf).softmax(0)
    last = ends.float().cpu().masked_fill(outside, -torch.inf).softmax(0)
    spans = (first.unsqueeze(1) * last.unsqueeze(0)).triu().tril(MAX_ANSWER_TOKENS - 1)
    best = int(spans.argmax())
    return best // len(first), best % len(first), float(spans.max())
