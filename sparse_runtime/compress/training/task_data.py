"""A stage's view of the data: tokenized rows to train on and to evaluate on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .augmentation import Copies, nearest, whole_words
from .data import Data, Part
from .encoding import EncodedTexts, Masking
from .evaluation import EvaluationTexts
from .recipe import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def training_part(stage: Stage, data: Data) -> Part:
    """The rows that a stage trains on."""
    return data.plain if stage.task in ("masked_lm", "embedding") else data.train


def training_texts(
    stage: Stage,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    embeddings: Tensor | None = None,
) -> EncodedTexts:
    """What a stage trains on: labelled rows, or plain texts where the task has no labels.

    Args:
        stage: of the recipe.
        data: of the run.
        tokenizer: of the model.
        seed: of the run.
        embeddings: of the teacher's words; for a stage that augments.
    """
    part = training_part(stage, data)
    texts = EncodedTexts(part, tokenizer, stage.max_length, masking_of(stage, tokenizer, seed))
    if stage.augment is not None:
        assert embeddings is not None  # a stage that augments has a teacher
        if stage.augment.join and part.seconds is not None:
            raise ValueError("augment.join: expected texts, got pairs")
        whole = whole_words(part, tokenizer, stage.max_length)
        words = torch.cat(
            [row[mask] for row, mask in zip(texts.columns["input_ids"], whole, strict=True)]
        ).unique()
        table = nearest(embeddings, words, stage.augment.neighbours)
        texts.copies = Copies(stage.augment, table, whole, seed)
    return texts


def evaluation_texts(
    stage: Stage, part: Part | None, tokenizer: PreTrainedTokenizerBase
) -> EvaluationTexts | None:
    """What a stage is evaluated on; None where the part is missing or cannot say anything."""
    if part is None:
        return None
    if stage.task == "masked_lm":
        masking = masking_of(stage, tokenizer, seed=0)
        return EvaluationTexts(EncodedTexts(part.plain(), tokenizer, stage.max_length, masking))
    if part.labels is None:
        return None
    if stage.task != "embedding":
        return EvaluationTexts(EncodedTexts(part, tokenizer, stage.max_length))
    if part.seconds is None:
        return None
    first = EncodedTexts(replace(part, seconds=None), tokenizer, stage.max_length)
    second = EncodedTexts(Part(part.seconds), tokenizer, stage.max_length)
    return EvaluationTexts(first, second)


def masking_of(stage: Stage, tokenizer: PreTrainedTokenizerBase, seed: int) -> Masking | None:
    """How a masked LM's tokens are hidden; None for other tasks.

    Raises:
        ValueError: the tokenizer has no mask token.
    """
    if stage.task != "masked_lm":
        return None
    if tokenizer.mask_token_id is None:
        raise ValueError("task: masked_lm needs a tokenizer with a mask token, this one has none")
    return Masking(
        stage.mask_probability,
        tokenizer.mask_token_id,
        len(tokenizer),
        frozenset(tokenizer.all_special_ids),
        seed,
    )
