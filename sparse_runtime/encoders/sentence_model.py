"""What SparseModel does with sentences; the forward pass is beside it, in model.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..ops import Backend
from ..store.companions import Companions
from .inputs import read_inputs
from .pooling import pool
from .settings import Settings
from .stack import Stack

if TYPE_CHECKING:
    import numpy as np

    from .sentence import SentenceEncoder


class SentenceModel(nn.Module):
    """The part of SparseModel that embeds sentences; the other one sets the attributes."""

    _settings: Settings
    _backend: Backend
    _stack: Stack
    _companions: Companions | None
    _sentence: SentenceEncoder | None

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int = 32,
        normalize_embeddings: bool = False,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> np.ndarray[Any, Any] | Tensor:
        """Embed sentences as the sentence-transformers pipeline of the same checkpoint does.

        Args:
            sentences: one text or several.
            batch_size: texts run at a time, longest first.
            normalize_embeddings: scale each embedding to length 1.
            show_progress_bar: None shows it where logging is at level INFO or below.
            convert_to_numpy: float32 NumPy array rather than a tensor on the model's device.
            convert_to_tensor: the tensor whatever ``convert_to_numpy`` says.
            prompt_name: put this one of the pipeline's prompts before each text; None is its
                default one.
            prompt: put this before each text.

        Returns:
            [features] for one text, [texts, features] for several, in their order.

        Raises:
            TypeError: something else than texts.
            ValueError: the model has a task's head, brings no tokenizer, its pipeline asks for what
                does not run here, or its files changed since it was loaded; no such prompt.
        """
        if self._sentence is None:
            from .sentence import SentenceEncoder

            self._sentence = SentenceEncoder(
                self._companions, self._settings, self._backend.device, self._backend.dtype
            )
        with torch.no_grad(), self._without_autocast():
            return self._sentence.encode(
                self._pooled,
                sentences,
                batch_size=batch_size,
                normalize_embeddings=normalize_embeddings,
                show_progress_bar=show_progress_bar,
                convert_to_numpy=convert_to_numpy and not convert_to_tensor,
                prompt_name=prompt_name,
                prompt=prompt,
            )

    def _pooled(
        self, modes: tuple[str, ...], input_ids: Tensor, attention_mask: Tensor, **ids: Tensor
    ) -> Tensor:
        """Float [sentences, hidden * modes]; ``modes`` are keys of ``POOLINGS``."""
        settings, backend = self._settings, self._backend
        batch, columns = read_inputs(settings, backend, input_ids, attention_mask, **ids)
        tokens = self._stack.run(batch, columns)[-1]
        pooled = backend.pool(tokens, batch, modes)
        if pooled is None:
            mask = attention_mask.to(tokens.device) != 0
            pooled = pool(backend.restore_padding(tokens, batch), mask, modes)
        return pooled

    def _without_autocast(self) -> AbstractContextManager[Any]:
        # Entering one where none is on costs as much as checking an input.
        device = self._backend.device.type
        if torch.is_autocast_enabled(device):
            return torch.autocast(device, enabled=False)
        return nullcontext()
