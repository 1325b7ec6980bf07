"""The fused operations an encoder is written over, in each backend's own activation layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..kernels.attention import reference as attention_reference
from ..kernels.embedding import reference as embedding_reference
from ..kernels.padding import reference as padding_reference
from ..kernels.padding.operands import Padded
from ..spec import QuantizedAttention
from .choose import Decision, check_backend, choose
from .cuda import device as cuda_device
from .native import unavailable
from .reference import quantizers_of
from .reorder import can_reorder, reorder
from .types import LinearWeight, Norm, PreparedLinear, TokenBatch, can_fuse

if TYPE_CHECKING:
    from .cuda.padding import PaddedScan

Activation = Any
"""A backend's own form of [tokens, features]; encoders pass it on and never look inside."""

Recorder = Callable[[TokenBatch, tuple[Tensor, ...]], Activation]
"""Runs an encoder's operations on a batch and the ids for each embedding table."""


class SideBySide(PreparedLinear):
    """Layers that quantize their common input differently: run one by one, outputs joined."""

    candidate = "side by side"

    def __init__(self, parts: Sequence[PreparedLinear]) -> None:
        names, outputs = [part.name for part in parts], [part.out_features for part in parts]
        super().__init__(" + ".join(names), parts[0].in_features, sum(outputs))
        self.parts = nn.ModuleList(parts)

    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        self.check(x, activation, residual)
        y = torch.cat([part(x, activation) for part in self.parts], dim=1)
        return y if residual is None else y + residual.to(y.dtype)


class Backend:
    """The reference backend, and the base of the others: plain PyTorch, row-major activations.

    Attributes:
        name: "reference", "cpu" or "cuda".
        device: where it runs.
        dtype: the float type of activations.
        decisions: one for every linear layer prepared so far.
    """

    name = "reference"

    def __init__(self, device: torch.device, dtype: torch.dtype, choice: str) -> None:
        self.device = device
        self.dtype = dtype
        self.decisions: list[Decision] = []
        self._choice = choice

    def prepare_linear(
        self, weights: Sequence[LinearWeight], reader: LinearWeight | None = None
    ) -> PreparedLinear:
        """Prepare layers that read the same input; their outputs lie side by side.

        Args:
            weights: the layers.
            reader: the layer that alone reads their outputs, where there is one.
        """
        groups = [list(weights)] if can_fuse(weights) else [[weight] for weight in weights]
        # Layers side by side do not make whole rows, which are quantized.
        alone = reader is not None and len(groups) == 1
        results = reader.packed.spec.activations if reader and alone else None
        decisions = [
            choose(
                group,
                backend=self._choice,
                device=self.device,
                dtype=self.dtype,
                results=results,
            )
            for group in groups
        ]
        self.decisions += decisions
        prepared = [decision.prepare() for decision in decisions]
        return prepared[0] if len(prepared) == 1 else SideBySide(prepared)

    def prepare_pair(
        self,
        makers: Sequence[LinearWeight],
        reader: LinearWeight,
        unit: int | None = None,
        *,
        between: bool = False,
    ) -> tuple[PreparedLinear, PreparedLinear]:
        """:meth:`prepare_linear` of layers, and of the one that alone reads what they make.

        The channels between may change places, as suits the reader's kernel: the last outputs of
        the last maker, one for each input of the reader. Whatever stands between the two must treat
        them alike.

        Args:
            makers: layers that read the same input.
            reader: the other layer.
            unit: channels may change places within so many consecutive ones; None: with any.
            between: whether something stands between the two that reads what the makers make,
                such as attention; else the reader reads it, behind an activation function.
        """
        makers = list(makers)
        if can_reorder(makers[-1], reader):
            order = self.input_order(reader, unit)
            if order is not None:
                makers[-1], reader = reorder(makers[-1], reader, order)
        own = self.prepare_linear(makers, None if between else reader)
        return own, self.prepare_linear([reader])

    def input_order(self, reader: LinearWeight, unit: int | None) -> Tensor | None:
        """int64 [in], the order of a layer's inputs that its kernel runs fastest; None: as is.

        Args:
            reader: the layer.
            unit: inputs stay within so many consecutive ones; None: they go anywhere.
        """
        return None

    def parts(
        self, batch: TokenBatch, layers: Sequence[Sequence[PreparedLinear]]
    ) -> Iterator[tuple[TokenBatch, slice]]:
        """The sequences that should run together, and where their tokens lie in the batch.

        Args:
            batch: all of them.
            layers: the linears of each layer, the same each time.
        """
        yield batch, slice(0, len(batch.index))

    def encode(self, batch: TokenBatch, ids: tuple[Tensor, ...], record: Recorder) -> Tensor:
        """Row-major [tokens, features] of a whole pass.

        Args:
            batch: the sequences.
            ids: int64 [tokens] for each embedding table.
            record: calls this backend's operations, for the same layers in the same order each
                time. A backend may keep what it has seen and not call it again.
        """
        return self.to_tokens(record(batch, ids))

    def scan(self, padded: Padded, padding_id: int | None) -> PaddedScan | None:
        """Look at a padded batch by kernels; None where plain PyTorch does as well."""
        return None

    def embed(
        self,
        batch: TokenBatch,
        ids: tuple[Tensor, ...],
        tables: tuple[Tensor, ...],
        norm: Norm | None,
    ) -> Activation:
        """Sum one row of each table (float [rows, features]) per token, then normalize."""
        return self._normalize(embedding_reference.embed(ids, tables), norm)

    def linear(
        self,
        x: Activation,
        layer: PreparedLinear | nn.Module,
        *,
        activation: str | None = None,
        residual: Activation | None = None,
        norm: Norm | None = None,
    ) -> Activation:
        """``norm(activation(layer(x)) + residual)``; a plain module is called as a prepared one."""
        return self._normalize(layer(x, activation, residual), norm)

    def attention(
        self,
        qkv: Activation,
        batch: TokenBatch,
        *,
        heads: int,
        scale: float,
        bias: Tensor | None = None,
        quantized: QuantizedAttention | None = None,
    ) -> Activation:
        """Self-attention within each sequence.

        Args:
            qkv: queries, keys and values side by side.
            batch: the sequences.
            heads: number of heads.
            scale: multiplies the scores.
            bias: float [heads, span, span], indexed by ``batch.row_positions``, or None.
            quantized: how the two products are quantized, or None: not at all.
        """
        steps = quantizers_of(quantized)
        return attention_reference.attention(
            qkv, batch.lengths, heads, scale, bias, batch.row_positions, steps
        )

    def attention_note(
        self, head_size: int, quantized: QuantizedAttention | None, bias: bool = False
    ) -> str | None:
        """What runs such attentions, for ``explain()``; None where there is but one way.

        Args:
            head_size: features of a head.
            quantized: how the two products are quantized, or None: not at all.
            bias: whether something is added to the scores.
        """
        return None

    def remarks(self) -> list[str]:
        """What else ``explain()`` says of the backend, a line each."""
        return []

    def pool(self, tokens: Tensor, batch: TokenBatch, modes: tuple[str, ...]) -> Tensor | None:
        """Pool each sequence's [tokens, features] by kernels: [sequences, features * modes], modes
        by sentence-transformers' names; None where plain PyTorch does as well."""
        return None

    def restore_padding(self, tokens: Tensor, batch: TokenBatch) -> Tensor:
        """Float [tokens, features] -> [batch, sequence, features], zeros at masked positions."""
        features, rows = tokens.shape[1], batch.batch_size * batch.seq_len
        if len(tokens) < rows:
            tokens = self._repad(tokens, batch.index, rows)
        return tokens.view(batch.batch_size, batch.seq_len, features)

    def from_tokens(self, batch: TokenBatch, tokens: Tensor) -> Activation:
        """Row-major float [tokens, features] -> this backend's form, for the batch they are of."""
        return tokens

    def to_tokens(self, x: Activation) -> Tensor:
        """This backend's form -> row-major [tokens, features]."""
        return x

    def _repad(self, tokens: Tensor, index: Tensor, rows: int) -> Tensor:
        return padding_reference.repad(tokens, index, rows)

    def _normalize(self, x: Tensor, norm: Norm | None) -> Tensor:
        return x if norm is None else norm.apply(x)


def get_backend(name: str, device: torch.device | str, dtype: torch.dtype) -> Backend:
    """The backend called ``name``; "auto" takes the device's own, else the reference.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend does not run on ``device``.
    """
    check_backend(name)
    device = torch.device(device)
    if name == "cpu" and device.type != "cpu":
        raise RuntimeError(f"backend 'cpu' runs on cpu, got device {device}; use 'auto'")
    if name == "cuda" or (name == "auto" and device.type == "cuda" and _runs_cuda(device)):
        from .cuda.backend import CudaBackend  # it derives from Backend

        return CudaBackend(device, dtype, choice=name)
    without_kernels = name == "auto" and unavailable() is not None
    if name == "reference" or device.type != "cpu" or without_kernels:
        return Backend(device, dtype, choice=name)
    from .cpu_backend import CpuBackend  # it derives from Backend

    return CpuBackend(device, dtype, choice=name)


def _runs_cuda(device: torch.device) -> bool:
    return (cuda_device.unavailable() or cuda_device.refuses(device)) is None
