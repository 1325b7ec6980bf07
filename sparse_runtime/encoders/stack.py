"""The forward pass of every encoder, written once over a backend's fused operations.

    embed -> [ linear(qkv) -> attention -> linear(out, residual, norm)
               -> linear(ffn_in, activation) -> linear(ffn_out, residual, norm) ] x layers

Activations stay in the backend's own layout from the first operation to the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import Activation, Backend, Norm, PreparedLinear, TokenBatch
from ..spec import QuantizedAttention
from .relative import attention_bias
from .settings import Settings
from .weights import Weights


@dataclass(frozen=True)
class Layer:
    """One layer, ready to run."""

    qkv: PreparedLinear
    attention: QuantizedAttention | None
    attention_out: PreparedLinear
    attention_norm: Norm
    ffn_in: PreparedLinear
    ffn_out: PreparedLinear
    ffn_norm: Norm


class Stack:
    """Embeddings and layers of one model on one backend.

    Args:
        settings: sizes and variants.
        weights: where the tensors come from.
        backend: runs the operations.
    """

    def __init__(self, settings: Settings, weights: Weights, backend: Backend) -> None:
        names = settings.architecture
        self._settings = settings
        self._backend = backend
        self._tables = tuple(weights.table(name) for _, name in names.tables)
        self._embedding_norm = weights.norm(f"{weights.prefix}{names.embedding_norm}")
        projection = weights.projection()
        self._projection = None if projection is None else weights.linear(projection)
        self._layers = [self._layer(weights, i) for i in range(settings.layers)]
        self._distances: Tensor | None = None
        self._bias: Tensor | None = None
        if names.relative_bias is not None:
            self._distances = weights.table(names.relative_bias)
            self._bias = attention_bias(self._distances, settings.max_length)

    def _layer(self, weights: Weights, i: int) -> Layer:
        name = f"{weights.prefix}{self._settings.architecture.stack}.{i}"
        base = f"{name}."
        names = self._settings.architecture.layer
        return Layer(
            qkv=weights.stack_linear(*(base + part for part in names.qkv)),
            attention=weights.attention(name),
            attention_out=weights.stack_linear(base + names.attention_out),
            attention_norm=weights.norm(base + names.attention_norm),
            ffn_in=weights.stack_linear(base + names.ffn_in),
            ffn_out=weights.stack_linear(base + names.ffn_out),
            ffn_norm=weights.norm(base + names.ffn_norm),
        )

    def run(
        self, batch: TokenBatch, ids: tuple[Tensor, ...], *, every_layer: bool = False
    ) -> list[Tensor]:
        """Run the encoder.

        Args:
            batch: the sequences.
            ids: int64 [tokens] for each embedding table.
            every_layer: whether to return the embeddings and each layer's output, not only the
                last.

        Returns:
            float [tokens, hidden] each.
        """
        if not len(batch.index):
            empty = self._tables[0].new_zeros(0, self._settings.sizes["hidden"])
            return [empty] * (len(self._layers) + 1 if every_layer else 1)
        parts = [
            self._run_part(part, tuple(column[at] for column in ids), every_layer)
            for part, at in batch.split(self._backend.most_tokens)
        ]
        if len(parts) == 1:
            return parts[0]
        return [torch.cat(states) for states in zip(*parts, strict=True)]

    def _run_part(
        self, batch: TokenBatch, ids: tuple[Tensor, ...], every_layer: bool
    ) -> list[Tensor]:
        if not every_layer:
            return [self._backend.encode(batch, ids, self._record)]
        return [self._backend.to_tokens(x) for x in self._states(batch, ids)]

    def _record(self, batch: TokenBatch, ids: tuple[Tensor, ...]) -> Activation:
        """The last layer's output."""
        x: Activation = None
        for state in self._states(batch, ids):
            x = state
        return x

    def _states(self, batch: TokenBatch, ids: tuple[Tensor, ...]) -> Iterator[Activation]:
        """The embeddings, then each layer's output."""
        backend = self._backend
        x = backend.embed(batch, ids, self._tables, self._embedding_norm)
        if self._projection is not None:
            x = backend.linear(x, self._projection)
        yield x
        bias = self._attention_bias(batch)
        for layer in self._layers:
            x = self._run_layer(x, layer, batch, bias)
            yield x

    def _attention_bias(self, batch: TokenBatch) -> Tensor | None:
        if self._distances is None or batch.seq_len <= self._settings.max_length:
            return self._bias
        # More columns than positions: padding on the left, or the caller's own position ids.
        return attention_bias(self._distances, batch.seq_len)

    def _run_layer(
        self, x: Activation, layer: Layer, batch: TokenBatch, bias: Tensor | None
    ) -> Activation:
        backend, settings = self._backend, self._settings
        qkv = backend.linear(x, layer.qkv)
        scale = (settings.sizes["hidden"] // settings.heads) ** -0.5
        context = backend.attention(
            qkv,
            batch,
            heads=settings.heads,
            scale=scale,
            bias=bias,
            quantized=layer.attention,
        )
        x = backend.linear(context, layer.attention_out, residual=x, norm=layer.attention_norm)
        inner = backend.linear(x, layer.ffn_in, activation=settings.activation)
        return backend.linear(inner, layer.ffn_out, residual=x, norm=layer.ffn_norm)
