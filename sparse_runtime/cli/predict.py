"""What `run` shows: the output of every kind of head, as data and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders import SparseModel
from .answers import best_answer
from .reader import Input, Reader, Row


@dataclass(frozen=True)
class Result:
    """One input's result: a JSON object, and text for people."""

    data: dict[str, Any]
    text: str


Predict = Callable[[Sequence[Input]], Iterator[Result]]


def predictor(
    packed: str,
    *,
    device: str | None,
    backend: str,
    batch_size: int,
    max_length: int | None,
    top_k: int | None,
) -> Predict:
    """Load a packed model, and return what turns inputs into results one by one.

    Raises:
        ValueError: the model does not load, or the options do not suit it.
    """
    model = SparseModel.from_pretrained(packed, device=device, backend=backend)
    if top_k is not None and model.task != "masked_lm":
        raise ValueError("--top-k: belongs to masks; this model's head predicts no words")
    if model.task == "base":
        if max_length is not None:
            raise ValueError("--max-length: an embedding model's own pipeline says where to cut")
        return _Embeddings(model, batch_size)
    reader = Reader(model, batch_size, max_length)
    if model.task == "question_answering":
        return partial(_answers, reader)
    describe: dict[str, Callable[[Row], Result]] = {
        "sequence_classification": partial(_classified, reader),
        "token_classification": partial(_labelled, reader),
        "masked_lm": partial(_unmasked, reader, 5 if top_k is None else top_k),
    }
    return lambda inputs: (describe[model.task](row) for row in reader.rows(inputs))


class _Embeddings:
    """A vector for each text; the cosine for each pair."""

    def __init__(self, model: SparseModel, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size
        self._first: Tensor | None = None

    def __call__(self, inputs: Sequence[Input]) -> Iterator[Result]:
        texts = [text for each in inputs for text in ([each] if isinstance(each, str) else each)]
        encoded = self._model.encode(texts, self._batch_size, convert_to_numpy=False)
        vectors = iter(torch.as_tensor(encoded).float().cpu())
        for each in inputs:
            vector = next(vectors)
            if isinstance(each, str):
                yield self._described(each, vector)
            else:
                cosine = float(F.cosine_similarity(vector, next(vectors), dim=0))
                yield Result(_named(each) | {"cosine": cosine}, f"{cosine:.4f}  {_joined(each)}")

    def _described(self, text: str, vector: Tensor) -> Result:
        if self._first is None:
            self._first = vector
        cosine = float(F.cosine_similarity(vector, self._first, dim=0))
        start = ", ".join(f"{x:.4f}" for x in vector[:3].tolist())
        shown = f"[{start}, ...] of {len(vector)}, cosine with the first {cosine:.4f}  {text}"
        return Result({"text": text, "embedding": vector.tolist()}, shown)


def _classified(reader: Reader, row: Row) -> Result:
    """The best label; each label's yes or no; or the numbers that a regression gives."""
    data, text = _named(row.input), _joined(row.input)
    logits = row.logits
    if len(logits) == 1:
        score = float(logits[0])
        return Result(data | {"score": score}, f"{score:.4f}  {text}")
    names, problem = reader.labels, reader.model.config.problem_type
    if problem == "regression":
        named = dict(zip(names, logits.tolist(), strict=True))
        shown = ", ".join(f"{name} {score:.4f}" for name, score in named.items())
        return Result(data | {"scores": named}, f"{shown}  {text}")
    if problem == "multi_label_classification":
        scores = logits.sigmoid().tolist()
        named = {names[i]: score for i, score in enumerate(scores)}
        labels = [label for label, score in named.items() if score > 0.5]
        shown = ", ".join(f"{label} {named[label]:.4f}" for label in labels) or "no label"
        return Result(data | {"labels": labels, "scores": named}, f"{shown}  {text}")
    scores = logits.softmax(0).tolist()
    best = int(logits.argmax())
    label, score = names[best], scores[best]
    named = {names[i]: score for i, score in enumerate(scores)}
    data |= {"label": label, "score": score, "scores": named}
    return Result(data, f"{label}  {score:.4f}  {text}")


def _labelled(reader: Reader, row: Row) -> Result:
    """A label for each token that is not a special one."""
    scores, labels = row.logits.softmax(1).max(1)
    tokens = [
        {
            "token": row.tokens[i],
            "label": reader.labels[int(labels[i])],
            "score": float(scores[i]),
            "start": row.offsets[i][0],
            "end": row.offsets[i][1],
        }
        for i in range(len(row.tokens))
        if not row.special[i]
    ]
    lines = [f"  {t['token']}  {t['label']}  {t['score']:.4f}" for t in tokens]
    return Result(_named(row.input) | {"tokens": tokens}, "\n".join([_joined(row.input), *lines]))


def _unmasked(reader: Reader, top_k: int, row: Row) -> Result:
    """The most likely words at each mask.

    Raises:
        ValueError: the text has no mask token.
    """
    tokenizer = reader.tokenizer
    at = [i for i, token in enumerate(row.ids) if token == tokenizer.mask_token_id]
    if not at:
        raise ValueError(
            f"{row.input!r}: expected the mask token {tokenizer.mask_token} in the text"
        )
    masks = []
    for position in at:
        scores, ids = row.logits[position].softmax(0).topk(min(top_k, row.logits.shape[1]))
        words = tokenizer.convert_ids_to_tokens(ids.tolist())
        pairs = zip(words, scores.tolist(), strict=True)
        masks.append([{"token": word, "score": score} for word, score in pairs])
    lines = [
        "  " + ", ".join(f"{word['token']} {word['score']:.4f}" for word in mask) for mask in masks
    ]
    return Result(_named(row.input) | {"masks": masks}, "\n".join([_joined(row.input), *lines]))


def _answers(reader: Reader, inputs: Sequence[Input]) -> Iterator[Result]:
    """The part of each context that answers its question.

    Raises:
        ValueError: an input is a text alone.
    """
    for each in inputs:
        if isinstance(each, str):
            raise ValueError(
                "this model answers questions: expected --question with --context, or --pairs "
                "with questions as sentence1 and contexts as sentence2, got a text"
            )
        answer = best_answer(reader, *each)
        data = {"question": each[0], "context": each[1], **answer.to_dict()}
        yield Result(data, f"{answer.text}  {answer.score:.4f}")


def _named(each: Input) -> dict[str, Any]:
    """The input's own part of a JSON object."""
    if isinstance(each, str):
        return {"text": each}
    return {"sentence1": each[0], "sentence2": each[1]}


def _joined(each: Input) -> str:
    return each if isinstance(each, str) else " | ".join(each)
