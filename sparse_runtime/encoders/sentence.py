"""Sentences -> embeddings: tokenizer, encoder, pooling and what follows it."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..store.companions import Companions
from ..store.tokenizer_files import check_tokenizer
from ..store.weights import map_tensors
from .dense import DenseLinear
from .pipeline import Dense, read_pipeline
from .settings import BASE, Settings

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

Encoder = Callable[..., Tensor]
"""Keys of ``POOLINGS``, and ``input_ids``, ``attention_mask`` and other ids by name -> float
[sentences, hidden * poolings]."""


class SentenceEncoder:
    """Embeds sentences as a directory's sentence-transformers pipeline does.

    Args:
        files: of the tokenizer and the pipeline.
        settings: the model's.
        device: where the model runs.
        dtype: float type of the embeddings.

    Raises:
        ValueError: no tokenizer, files that are not those of the model any more, a model with a
            task's head, or an unsupported pipeline.
    """

    def __init__(
        self,
        files: Companions | None,
        settings: Settings,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if settings.task != BASE:
            raise ValueError(f"encode: expected a base model, this one is for {settings.task}")
        if files is None:
            raise ValueError("encode: the packed model has no tokenizer files (extra_files)")
        files.check()
        check_tokenizer(files.directory)
        self._device, self._dtype = device, dtype
        self._lock = Lock()
        self._pipeline = read_pipeline(files.directory, settings.sizes["hidden"])
        dense = (_load_dense(s) for s in self._pipeline.steps if isinstance(s, Dense))
        self._dense = [layer.to(device, dtype) for layer in dense]
        self._tokenizer = _load_tokenizer(files.directory, self._pipeline.lower_case)
        stated = self._pipeline.max_length or self._tokenizer.model_max_length
        self._max_length = int(min(stated, settings.max_length))
        special = self._tokenizer.num_special_tokens_to_add()
        if self._max_length <= special:
            raise ValueError(
                f"{files.directory}: max_seq_length {self._max_length}: expected more than the "
                f"{special} special tokens of a text"
            )

    def encode(
        self,
        encoder: Encoder,
        sentences: str | Iterable[str],
        *,
        batch_size: int,
        normalize_embeddings: bool,
        show_progress_bar: bool | None,
        convert_to_numpy: bool,
        prompt_name: str | None,
        prompt: str | None,
    ) -> np.ndarray[Any, Any] | Tensor:
        """Embed one text or several; see ``SparseModel.encode``."""
        prompt = self._pipeline.chosen_prompt(prompt_name, prompt)
        texts = [prompt + text for text in _read_sentences(sentences)]
        batch_size = _read_batch_size(batch_size)
        if show_progress_bar is None:
            show_progress_bar = logger.getEffectiveLevel() <= logging.INFO
        embeddings = self._run(encoder, texts, batch_size, show_progress_bar)
        if normalize_embeddings:
            embeddings = F.normalize(embeddings, dim=1)
        if isinstance(sentences, str):
            embeddings = embeddings[0]
        return embeddings.float().cpu().numpy() if convert_to_numpy else embeddings

    def _run(
        self, encoder: Encoder, texts: list[str], batch_size: int, show_progress_bar: bool
    ) -> Tensor:
        from tqdm import tqdm

        # Sentences of like length share a batch; the longest first, so that memory runs out at
        # once or never.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        starts = range(0, len(texts), batch_size)
        parts = [torch.empty(0, self._pipeline.features, dtype=self._dtype, device=self._device)]
        for start in tqdm(starts, desc="Batches", disable=not show_progress_bar):
            batch = [texts[i] for i in order[start : start + batch_size]]
            parts.append(self._embed(encoder, batch))
        embeddings = torch.cat(parts)
        restored = torch.empty_like(embeddings)
        restored[torch.tensor(order, dtype=torch.int64, device=embeddings.device)] = embeddings
        return restored

    def _embed(self, encoder: Encoder, texts: list[str]) -> Tensor:
        pipeline = self._pipeline
        # A fast tokenizer refuses calls from other threads while its truncation is being set.
        with self._lock:
            inputs = self._tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
        given = {name: inputs[name] for name in _INPUTS if name in inputs}
        x = encoder(pipeline.poolings, **given)
        dense = iter(self._dense)
        for step in pipeline.steps:
            if isinstance(step, Dense):
                x = next(dense)(x, step.activation)
            else:
                x = F.normalize(x, dim=1)
        return x if pipeline.truncate_dim is None else x[:, : pipeline.truncate_dim]


_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def _read_sentences(sentences: Any) -> list[str]:
    unordered = (bytes, bytearray, Mapping, Set)
    if not isinstance(sentences, Iterable) or isinstance(sentences, unordered):
        raise TypeError(
            f"sentences: expected a string or a list of strings, got {type(sentences).__name__}"
        )
    texts = [sentences] if isinstance(sentences, str) else list(sentences)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"sentences[{i}]: expected a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"sentences[{i}]: no valid Unicode: {error}") from None
    return [str(text) for text in texts]


def _read_batch_size(batch_size: Any) -> int:
    try:
        size = 0 if isinstance(batch_size, bool) else operator.index(batch_size)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"batch_size {batch_size!r}: expected an integer of at least 1")
    return size


def _load_tokenizer(directory: Path, lower_case: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory}: no tokenizer could be loaded from here: {error}") from error
    if lower_case:
        _lower_case(tokenizer.backend_tokenizer)
    return tokenizer


def _lower_case(tokenizer: Any) -> None:
    """Put lower-casing before a fast tokenizer's own normalizers."""
    from tokenizers import normalizers

    first, own = normalizers.Lowercase(), tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence([first] if own is None else [first, own])


def _load_dense(step: Dense) -> DenseLinear:
    path = step.directory / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: missing; a Dense module keeps its weights there")
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (step.outputs, step.inputs)}
    if step.bias:
        shapes["linear.bias"] = (step.outputs,)
    tensors = map_tensors(path, shapes)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        raise ValueError(f"{path}: expected tensors {shapes}, got {found}")
    bias = tensors.get("linear.bias")
    weight = tensors["linear.weight"]
    return DenseLinear(weight, weight.new_zeros(step.outputs) if bias is None else bias)
