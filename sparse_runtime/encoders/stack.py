"""The forward pass of every encoder, written once over a backend's fused operations.

    embed -> [ linear(qkv) -> attention -> linear(out, residual, norm)
               -> linear(ffn_in, activation) -> linear(ffn_out, residual, norm) ] x layers

Layers may differ in heads and feed-forward size. A layer without attention, or without
feed-forward, passes its input on as it is: without the bias and without the norm that would end
the missing half, as in CoFi (arXiv 2204.00408).

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
class Attention:
    """The first half of a layer, ready to run."""

    name: str
    heads: int
    qkv: PreparedLinear
    quantized: QuantizedAttention | None
    out: PreparedLinear
    norm: Norm


@dataclass(frozen=True)
class FeedForward:
    """The second half of a layer, ready to run."""

    inner: PreparedLinear
    out: PreparedLinear
    norm: Norm


@dataclass(frozen=True)
class Layer:
    """One layer; a half is None where the network lacks it."""

    attention: Attention | None
    ffn: FeedForward | None

    def linears(self) -> tuple[PreparedLinear, ...]:
        """Those of both halves."""
        attention = () if self.attention is None else (self.attention.qkv, self.attention.out)
        ffn = () if self.ffn is None else (self.ffn.inner, self.ffn.out)
        return (*attention, *ffn)


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
        self._linears = [layer.linears() for layer in self._layers]
        self._distances: Tensor | None = None
        self._bias: Tensor | None = None
        if names.relative_bias is not None:
            self._distances = weights.table(names.relative_bias)
            self._bias = attention_bias(self._distances, settings.max_length)

    def _layer(self, weights: Weights, i: int) -> Layer:
        name, shape = f"{weights.stack}.{i}", weights.shapes[i]
        names = self._settings.architecture.layer
        attention = ffn = None
        if shape.heads:
            # A head's values may stand in any order: softmax weighs them alike.
            qkv, out = weights.stack_pair(
                tuple(f"{name}.{part}" for part in names.qkv),
                f"{name}.{names.attention_out}",
                unit=self._settings.head_size,
                between=True,
            )
            attention = Attention(
                name=name,
                heads=shape.heads,
                qkv=qkv,
                quantized=weights.attention(name),
                out=out,
                norm=weights.norm(f"{name}.{names.attention_norm}"),
            )
        if shape.intermediate:
            inner, out = weights.stack_pair((f"{name}.{names.ffn_in}",), f"{name}.{names.ffn_out}")
            ffn = FeedForward(
                inner=inner,
                out=out,
                norm=weights.norm(f"{name}.{names.ffn_norm}"),
            )
        return Layer(attention, ffn)

    def attention_notes(self) -> list[tuple[str, str]]:
        """What each attention is, and what runs it; empty where the backend has but one way."""
        size, found = self._settings.head_size, []
        for own in (layer.attention for layer in self._layers if layer.attention is not None):
            note = self._backend.attention_note(size, own.quantized, self._bias is not None)
            if note is not None:
                found.append((f"{own.name}.attention: {own.heads} heads of {size}", note))
        return found

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
            for part, at in self._backend.parts(batch, self._linears)
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
        if layer.attention is not None:
            own = layer.attention
            context = backend.attention(
                backend.linear(x, own.qkv),
                batch,
                heads=own.heads,
                scale=settings.head_size**-0.5,
                bias=bias,
                quantized=own.quantized,
            )
            x = backend.linear(context, own.out, residual=x, norm=own.norm)
        if layer.ffn is not None:
            inner = backend.linear(x, layer.ffn.inner, activation=settings.activation)
            x = backend.linear(inner, layer.ffn.out, residual=x, norm=layer.ffn.norm)
        return x
