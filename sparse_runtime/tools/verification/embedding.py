"""Hidden states -> sentence embeddings, as the source's sentence-transformers files describe it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from ...encoders.pipeline import Dense, Pipeline, read_pipeline
from ...encoders.pooling import pool

_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Embedder:
    """The steps around the encoder, the same for both models; mean pooling without a pipeline.

    Args:
        directory: of the source.
        task: as ``SparseModel.task``; a model with a head has no pipeline.
        hidden: features of the hidden states.

    Raises:
        ValueError: the pipeline asks for what ``SparseModel.encode`` refuses.
    """

    def __init__(self, directory: Path, task: str, hidden: int) -> None:
        described = task == "base" and (directory / "modules.json").is_file()
        self._pipeline = read_pipeline(directory, hidden) if described else Pipeline(hidden)
        self._dense = [_Dense(step) for step in self._pipeline.steps if isinstance(step, Dense)]

    @property
    def max_length(self) -> int | None:
        """Tokens that the pipeline cuts a text to, if it says so."""
        return self._pipeline.max_length

    def prepare(self, text: str) -> str:
        """The text as the tokenizer gets it."""
        text = self._pipeline.prompt + text
        return text.lower() if self._pipeline.lower_case else text

    def embed(self, states: Tensor, mask: Tensor) -> Tensor:
        """Embeddings up to their length, which no cosine depends on.

        Args:
            states: float [texts, sequence, hidden].
            mask: bool [texts, sequence], real tokens.

        Returns:
            float32 [texts, features] on the CPU.
        """
        # Padding may hold anything, so it is replaced rather than multiplied with 0.
        states = states.float().masked_fill(~mask.unsqueeze(2), 0)
        x = pool(states, mask, self._pipeline.poolings).cpu()
        for dense in self._dense:
            x = dense(x)
        return x if self._pipeline.truncate_dim is None else x[:, : self._pipeline.truncate_dim]


class _Dense:
    """One Dense module, in float32."""

    def __init__(self, step: Dense) -> None:
        tensors = load_file(step.directory / "model.safetensors")
        self._weight = tensors["linear.weight"].float()
        self._bias = tensors["linear.bias"].float() if step.bias else None
        self._activation = _ACTIVATIONS[step.activation]

    def __call__(self, x: Tensor) -> Tensor:
        return self._activation(F.linear(x, self._weight, self._bias))
